// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model of hugetlbfs: processes that map one file share the page tables of it, and faults race with
//! all that unshares them.
//!
//! A page table that several address spaces have installed can be taken from one of them by a task that
//! holds no lock of that address space: a truncation, a punch. The last one to use it frees it. The
//! lock of a page table is in the page that it is made of. A fault that looked the table up before must
//! therefore be kept from it by something else: a [`Scheme`].
//!
//! | file | |
//! |---|---|
//! | `scheme` | the ways, and mistakes |
//! | `broken` | what must hold, checked by every operation |
//! | `table` | pages that page tables are made of, with generations |
//! | `space` | address spaces and VMAs |
//! | `inode` | the file: folios, tree of VMAs, locks |
//! | `fault` | faults and the sharing of page tables |
//! | `unmap` | unsharing, unmapping, exit, split |
//! | `remove` | truncation, punch, eviction |
//! | `walk` | GUP-fast and speculative references |
//! | `measure` | faults and forks a second, with real threads |
//!
//! Every operation returns the first [`Rule`] that it saw broken. A lock order that ends in a deadlock
//! panics, see [`waits`](crate::waits).

mod broken;
mod fault;
mod inode;
#[cfg(all(feature = "std", not(feature = "shuttle")))]
pub mod measure;
mod remove;
mod scheme;
mod space;
mod table;
mod unmap;
mod walk;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::sync::{AtomicBool, Ordering};
use crate::waits::{Party, Rwsem, Waits, WatchedMutex};
pub use broken::{Broken, Rule};
pub use fault::Fault;
use inode::Inode;
pub use scheme::{Flaw, Scheme};
use space::Space;
use table::{Page, TableRef, Tables};

/// Sizes of the model, and how it works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What keeps a page table in place under a fault.
    pub scheme: Scheme,
    /// A mistake.
    pub flaw: Option<Flaw>,
    /// Page tables that map the whole file (1 GiB each on x86-64).
    pub pieces: usize,
    /// Entries of a page table (512 on x86-64).
    pub entries: usize,
    /// Address spaces.
    pub spaces: usize,
    /// What its locks are.
    pub locks: Locks,
}

/// What the locks of a model are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Locks {
    /// Fair, and watched for a deadlock. Rules that take a walk over all page tables are checked.
    Watched,
    /// Fair: in the order of arrival, asleep.
    InOrder,
    /// Reader/writer locks are [stealing](Rwsem::stealing), as in Linux.
    Stealing,
}

/// A file of hugetlbfs, the address spaces that map it, and the memory for their page tables.
///
/// ```
/// use guest_driver::hugetlb::{Config, Fault, Hugetlb, Locks, Scheme};
///
/// let config = Config {
///     scheme: Scheme::VmaLock,
///     flaw: None,
///     pieces: 1,
///     entries: 2,
///     spaces: 2,
///     locks: Locks::Watched,
/// };
/// let hugetlb = Hugetlb::new(config);
/// let task = hugetlb.task("the task");
/// hugetlb.mmap(&task, 0);
/// hugetlb.mmap(&task, 1);
/// assert_eq!(hugetlb.fault(&task, 0, 1), Ok(Fault::Mapped));
/// assert_eq!(hugetlb.fault(&task, 1, 1), Ok(Fault::Mapped));
/// assert_eq!(hugetlb.page_tables(), 1);
/// assert_eq!(hugetlb.truncate(&task, 1), Ok(()));
/// assert_eq!(hugetlb.fault(&task, 0, 1), Ok(Fault::Sigbus));
/// assert_eq!(hugetlb.check_at_rest(), Ok(()));
/// ```
#[derive(Debug)]
pub struct Hugetlb {
    config: Config,
    waits: Arc<Waits>,
    tables: Tables,
    spaces: Vec<Space>,
    inode: Inode,
    /// Shared by those that walk page tables with interrupts disabled or in an RCU section.
    walkers: Rwsem,
    step: AtomicBool,
}

/// One that faults, unmaps, removes.
#[derive(Clone, Copy, Debug)]
pub struct Task(Party);

impl Hugetlb {
    /// A file that nothing maps and that has no folios yet.
    pub fn new(config: Config) -> Self {
        let waits = Arc::new(Waits::new());
        let mutex = |name: String| match config.locks {
            Locks::Watched => WatchedMutex::watched(&waits, name),
            Locks::InOrder | Locks::Stealing => WatchedMutex::new(),
        };
        let rwsem = |name: String| rwsem(&waits, config.locks, name);
        let space = |at| Space::new(config.pieces, rwsem(format!("mmap_lock {at}")));
        Self {
            tables: Tables::new(config.pieces * config.spaces, config.entries, mutex),
            spaces: (0..config.spaces).map(space).collect(),
            inode: Inode::new(config.pieces * config.entries, mutex, rwsem),
            walkers: rwsem("the grace period".into()),
            step: AtomicBool::new(false),
            waits,
            config,
        }
    }

    /// A task of this name.
    pub fn task(&self, name: impl Into<String>) -> Task {
        match self.config.locks {
            Locks::Watched => Task(self.waits.party(name)),
            Locks::InOrder | Locks::Stealing => Task(Party::UNWATCHED),
        }
    }

    /// Huge pages of the file, at most.
    pub fn pages(&self) -> usize {
        self.config.pieces * self.config.entries
    }

    /// Page tables that exist.
    pub fn page_tables(&self) -> usize {
        self.tables.all().count()
    }

    /// Checks what must hold when no operation is in progress.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check_at_rest(&self) -> Result<(), Broken> {
        for table in self.tables.all() {
            let (shares, users) = (self.shares(table), self.users(table));
            if shares + 1 != users {
                let what = format!("{users} address spaces have a page table with {shares} shares");
                return Err(Broken::new(Rule::ShareCountMatchesUsers, what));
            }
        }
        let size = self.inode.size.load(Ordering::SeqCst);
        let cache = self.inode.cache.lock();
        if let Some(at) = (size..cache.len()).find(|&at| cache[at].is_some()) {
            let what = format!("a folio stays at {at} of a file that ends at {size}");
            return Err(Broken::new(Rule::NoFolioBeyondTheEnd, what));
        }
        let (cached, free) = (cache.iter().flatten().count(), self.inode.pool.lock().len());
        if cached + free != self.inode.folios.len() {
            let what = format!("{cached} folios in the file, {free} free of {}", cache.len());
            return Err(Broken::new(Rule::PoolBalances, what));
        }
        Ok(())
    }

    /// A scheduling point, where a step of Linux touches no lock.
    fn step(&self) {
        self.step.load(Ordering::SeqCst);
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.config.flaw == Some(flaw)
    }

    fn uses(&self, scheme: Scheme) -> bool {
        self.config.scheme == scheme
    }

    /// Address spaces that have `table` installed.
    fn users(&self, table: TableRef) -> usize {
        let pieces = 0..self.config.pieces;
        let has = |space: &&Space| pieces.clone().any(|piece| space.pud(piece) == Some(table));
        self.spaces.iter().filter(has).count()
    }

    /// Address spaces that share `table` with the first, as it counts them.
    fn shares(&self, table: TableRef) -> usize {
        let by_references = self.has(Flaw::CountsReferences);
        let count = |state: &mut table::State| match by_references {
            true => state.references - 1,
            false => state.shares,
        };
        self.tables.with(table, count).unwrap_or(0)
    }

    /// The piece of the file that holds `index`, and the entry for it.
    fn place(&self, index: usize) -> (usize, usize) {
        (index / self.config.entries, index % self.config.entries)
    }

    /// What `table` maps at `index`.
    fn entry(&self, table: TableRef, index: usize) -> Option<Page> {
        let (_, entry) = self.place(index);
        self.tables.with(table, |state| state.entries[entry]).flatten()
    }
}

fn rwsem(waits: &Arc<Waits>, locks: Locks, name: String) -> Rwsem {
    match locks {
        Locks::Watched => Rwsem::watched(waits, name),
        Locks::InOrder => Rwsem::new(),
        Locks::Stealing => Rwsem::stealing(),
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
