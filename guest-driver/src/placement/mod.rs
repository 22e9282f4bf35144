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
//! | [`protocol`] | what all schemes implement |
//! | `sequence` | `mems_allowed_seq` |
//! | [`in_place`] | schemes that change nodemasks where readers look: all that Linux has had |
//! | [`copied`] | schemes that swap an updated copy in |
//! | [`zonelists`] | schemes that swap a cpuset's own zonelists |
//! | `swapping` | what these have in common |

pub mod copied;
pub mod in_place;
pub mod policy;
pub mod protocol;
pub mod remap;
pub mod scheme;
mod sequence;
mod swapping;
pub mod zonelists;

use alloc::boxed::Box;
use alloc::sync::Arc;

pub use policy::{Mempolicy, Mode, Nodes, Policy};
pub use protocol::{
    Ask, Copies, CpusetId, Outcome, Protocol, Setup, TaskId, TaskSetup, UpdateError, Vma,
};
pub use scheme::{Flaw, Scheme};
pub use swapping::NodesCopy;

use crate::page_alloc::{AllocError, AllocRequest, Mm, Pfn};
use crate::swapped::{Counts, Epochs, Supply};

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
