// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an allocation may go: cpusets, memory policies, and ways to update both under allocations that
//! are in progress.
//!
//! A [`Scheme`] is such a way. Each implements [`Protocol`]: what an allocation reads and when it looks
//! again, and what the writer of a cpuset does. [`Placement`] has one of them, chosen at run time; to
//! measure one, use its type.
//!
//! | file | Linux |
//! |---|---|
//! | [`policy`] | `struct mempolicy`, `mpol_rebind_policy` |
//! | [`remap`] | `bitmap_remap`, `bitmap_fold`, `bitmap_onto` |
//! | [`scheme`] | the list of schemes, and of their mistakes |
//! | `sequence` | `mems_allowed_seq` |
//! | [`in_place`] | schemes that change nodemasks where readers look: all that Linux has had |
//! | [`copied`] | schemes that swap an updated copy in |
//! | [`zonelists`] | schemes that swap a cpuset's own zonelists |
//! | `swapping` | what these have in common |

pub mod copied;
pub mod in_place;
pub mod policy;
pub mod remap;
pub mod scheme;
mod sequence;
mod swapping;
pub mod zonelists;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

pub use policy::{Mempolicy, Mode, Nodes, Policy};
pub use scheme::{Flaw, Scheme};
pub use swapping::NodesCopy;

use crate::page_alloc::{AllocError, AllocRequest, Mm, NodeMask, Pfn};
use crate::swapped::{Counts, Epochs, Supply};

/// A task, by its place in [`Setup::tasks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub usize);

/// A part of a task's address space that can have a policy, by its place in [`TaskSetup::vmas`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vma(pub usize);

/// A cpuset, by its place in [`Setup::cpusets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpusetId(pub usize);

/// The tasks and cpusets of a new [`Placement`].
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The nodes of each cpuset (`cpuset.mems`).
    pub cpusets: Vec<NodeMask>,
    /// The tasks.
    pub tasks: Vec<TaskSetup>,
    /// A mistake for the explorer to find. A scheme that cannot make it ignores it.
    pub flaw: Option<Flaw>,
}

/// A task of a [`Setup`].
#[derive(Clone, Debug)]
pub struct TaskSetup {
    /// Its cpuset.
    pub cpuset: CpusetId,
    /// Its policy.
    pub policy: Policy,
    /// The policies of its VMAs; [`Policy::DEFAULT`] where the task's applies.
    pub vmas: Vec<Policy>,
}

/// An allocation: who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The task that allocates.
    pub task: TaskId,
    /// What it is for, if its policy may differ from the task's.
    pub vma: Option<Vma>,
    /// The CPU that the task runs on.
    pub cpu: usize,
    /// What it asks for. Its node is the local one.
    pub request: AllocRequest,
    /// An allocation that tries more often in its slow path is abandoned: one that would go on for ever
    /// must end in a model.
    pub most_tries: u32,
}

/// What became of an allocation, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The page, or why there is none.
    pub page: Result<Pfn, AllocError>,
    /// How often the OOM killer was invoked.
    pub ooms: u32,
    /// How often the slow path tried.
    pub tries: u32,
    /// How often it began again because something had changed.
    pub restarts: u32,
    /// It tried too often.
    pub abandoned: bool,
}

/// Why an update did not happen. Everything is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// `ENOSPC`, `EINVAL`.
    #[error("no node is left (a cpuset with tasks, and a policy, need one)")]
    NoNodes,
    /// `ENOMEM`.
    #[error("no memory for the updated copy")]
    NoMemory,
}

/// Copies of a scheme that swaps them, once nothing is being updated and no allocation is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Those that pointers lead to.
    pub current: usize,
    /// Those that are not freed.
    pub live: usize,
    /// The most that there were at once.
    pub peak: usize,
}

/// A scheme: how allocations read where they may go, and how that is updated.
pub trait Protocol: Send + Sync {
    /// Allocates (`alloc_pages_mpol`).
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome;

    /// Gives a cpuset other nodes, and so its tasks, their policies and those of their VMAs
    /// (`update_nodemask`).
    ///
    /// # Errors
    /// [`UpdateError`]; then everything is as it was.
    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError>;

    /// Sets the policy of a task, which does so itself (`set_mempolicy`).
    ///
    /// # Errors
    /// [`UpdateError`]; then the old policy stays.
    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError>;

    /// Sets the policy of a VMA (`mbind`).
    ///
    /// # Errors
    /// [`UpdateError`]; then the old policy stays.
    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError>;

    /// The nodes that the task may use as long as nothing is being updated (`mems_allowed`).
    fn mems_allowed(&self, task: TaskId) -> NodeMask;

    /// The policy of a VMA, or the task's, as long as nothing is being updated.
    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy;

    /// The copies of a scheme that swaps them; frees those that may be freed and wait to be.
    fn copies(&self) -> Option<Copies> {
        None
    }

    /// Bytes of what limits allocations, of all tasks and cpusets, as it is in memory now.
    fn bytes(&self) -> usize;
}

/// Tasks, cpusets and policies over one guest's memory, under the scheme of a name.
///
/// ```
/// use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, NodeMask, ZoneId, ZoneLayout};
/// use guest_driver::page_alloc::ZoneType::Movable;
/// use guest_driver::placement::{CpusetId, Placement, Policy, Scheme, Setup, TaskId, TaskSetup};
/// use std::sync::Arc;
///
/// // Two nodes with a zone each.
/// let node = |node: u8| ZoneLayout {
///     node, kind: Movable, sections: vec![usize::from(node)..usize::from(node) + 1],
/// };
/// let zones = vec![node(0), node(1)];
/// let mm = Arc::new(Mm::new(&Layout { zones, ..Layout::flat(Geometry::TINY, 1, 2) }));
/// // A task in a cpuset of the first.
/// let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
/// let setup = Setup { cpusets: vec![NodeMask::of(0)], tasks: vec![task], flaw: None };
/// let placement = Placement::new(mm.clone(), Scheme::CheckAtRetry, &setup)?;
///
/// placement.set_mems(CpusetId(0), NodeMask::of(1))?;
/// let page = placement.alloc(TaskId(0), None, 0, AllocRequest::movable(0))?;
/// assert_eq!(mm.zone_of(page), Some(ZoneId(1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Placement {
    mm: Arc<Mm>,
    protocol: Box<dyn Protocol>,
}

impl Placement {
    /// Tasks and cpusets over `mm`.
    ///
    /// # Errors
    /// [`UpdateError::NoNodes`] if a cpuset or a policy has no node.
    pub fn new(mm: Arc<Mm>, scheme: Scheme, setup: &Setup) -> Result<Self, UpdateError> {
        Self::with_supply(mm, scheme, setup, Arc::default())
    }

    /// The same with the memory for what an update must allocate.
    ///
    /// # Errors
    /// [`UpdateError`]: a cpuset or a policy has no node, or `supply` has no memory.
    pub fn with_supply(
        mm: Arc<Mm>,
        scheme: Scheme,
        setup: &Setup,
        supply: Arc<Supply>,
    ) -> Result<Self, UpdateError> {
        let protocol = scheme.protocol(&mm, setup, supply)?;
        Ok(Self { mm, protocol })
    }

    /// Allocates for a task, by the policy of a VMA or the task's.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc(
        &self,
        task: TaskId,
        vma: Option<Vma>,
        cpu: usize,
        request: AllocRequest,
    ) -> Result<Pfn, AllocError> {
        self.ask(&Ask { task, vma, cpu, request, most_tries: u32::MAX }).page
    }

    /// The same, with what it took.
    pub fn ask(&self, ask: &Ask) -> Outcome {
        self.protocol.alloc(&self.mm, ask)
    }

    /// The memory.
    pub fn mm(&self) -> &Arc<Mm> {
        &self.mm
    }
}

impl core::ops::Deref for Placement {
    type Target = dyn Protocol;

    fn deref(&self) -> &Self::Target {
        self.protocol.as_ref()
    }
}

impl Scheme {
    /// The scheme of this name.
    fn protocol(
        self,
        mm: &Arc<Mm>,
        setup: &Setup,
        supply: Arc<Supply>,
    ) -> Result<Box<dyn Protocol>, UpdateError> {
        use copied::Copied;
        use in_place::{InPlace, rules};
        use zonelists::Zonelists;
        let (counted, by_epoch) = setup.flaw.map_or((None, None), Flaw::of_grace);
        Ok(match self {
            Self::InPlace => Box::new(InPlace::<rules::Overwrite>::new(setup)?),
            Self::TwoStep => Box::new(InPlace::<rules::TwoStep>::new(setup)?),
            Self::TwoScopes => Box::new(InPlace::<rules::TwoScopes>::new(setup)?),
            Self::IntersectionCheck => Box::new(InPlace::<rules::IntersectionCheck>::new(setup)?),
            Self::CheckAtRetry => Box::new(InPlace::<rules::CheckAtRetry>::new(setup)?),
            Self::CheckAfterReclaim => Box::new(InPlace::<rules::CheckAfterReclaim>::new(setup)?),
            Self::NoRebind => Box::new(InPlace::<rules::NoRebind>::new(setup)?),
            Self::CountedCopy => Box::new(Copied::new(setup, Counts::new(counted), supply)?),
            Self::EpochCopy => {
                let epochs = Epochs::new(mm.cpus(), by_epoch);
                Box::new(Copied::new(setup, epochs, supply)?)
            }
            Self::CountedZonelists => {
                Box::new(Zonelists::counted(Arc::clone(mm), setup, false, supply)?)
            }
            Self::SoftwallZonelists => {
                Box::new(Zonelists::counted(Arc::clone(mm), setup, true, supply)?)
            }
            Self::LockedZonelists => Box::new(Zonelists::locked(Arc::clone(mm), setup, supply)?),
        })
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
