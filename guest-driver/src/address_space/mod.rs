// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address spaces of processes, and those that mirror them: secondary MMUs with their notifiers.
//!
//! An address space ([`AddressSpace`], Linux's `mm_struct`) has VMAs with resident pages and a lock. A
//! device that mirrors a part of it subscribes to invalidations ([`Notifier`]): before a page of an interest
//! range leaves the address space, the device must have dropped it (`mmu_notifier`).
//!
//! | file | |
//! |---|---|
//! | `space` | an address space: lookup of a page, exit of the process |
//! | `vma` | VMAs by kind, with a page table each |
//! | `pages` | frames with a reference count, and what is wrong with a free |
//! | `reclaim` | memory that allocations wait for, and the one that makes progress |
//! | `intervals` | an interval tree |
//! | `notifiers` | subscriptions, and the start and end of an invalidation |

mod intervals;
mod notifiers;
mod pages;
mod reclaim;
mod space;
mod vma;

pub use intervals::IntervalTree;
pub use notifiers::{
    Again, Asks, Grace, Invalidation, Notifier, Notifiers, NotifyFlaw, Started, Step, Subscribed,
};
pub use pages::{Fault, PageId, Pages};
pub use reclaim::{NoMemory, Reclaim};
pub use space::AddressSpace;
pub use vma::{Vma, VmaKind, VmaSetup};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
