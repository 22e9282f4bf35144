// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that can be opened up: the driver's half of virtio-balloon, and a model of the guest's page
//! allocator.
//!
//! The library knows nothing of vhost-user or of a VMM. The embedder gives it guest memory
//! ([`ram::GuestRam`]) and carries notifications for it.
//!
//! - [`ram`]: guest physical addresses and access to guest memory.
//! - [`address_space`]: VMAs, their pages, and the notifiers of those that mirror them.
//! - [`pattern`]: contents that prove where a page came from.
//! - [`virtio`]: the driver's half of the split ring and of the balloon device.
//! - [`oom_reaper`]: frees the memory of a killed process beside secondary MMUs.
//! - [`page_alloc`]: a model of Linux's page allocator.
//! - [`placement`]: cpusets and memory policies: where an allocation may go.
//! - [`reporting`]: reports its free pages, in the way of 2019 and in mainline's.
//! - [`hugetlb`]: a model of processes that share page tables of hugetlbfs.
//! - [`waits`]: who waits for whom, so that a deadlock is found and named.
//! - `workload`: threads that use it as a guest's programs do.
//! - [`swapped`]: values that are swapped for a copy while others read them.
//! - [`random`], [`time`], [`sync`]: numbers from a seed, a clock, primitives that an explorer owns.
//!
//! # Features
//! `std` (default): locks and clock of the standard library, `workload`, and waiting for a pass that is
//! due. Without it the library needs `alloc` only: locks spin, and the embedder sets the clock.
//! `shuttle`: every primitive of [`sync`] is a scheduling point.

#![cfg_attr(not(any(feature = "std", test)), no_std)]

extern crate alloc;

pub mod address_space;
pub mod bits;
pub mod hugetlb;
pub mod oom_reaper;
pub mod page_alloc;
pub mod pattern;
pub mod placement;
pub mod ram;
pub mod random;
pub mod reporting;
pub mod swapped;
pub mod sync;
pub mod time;
pub mod virtio;
pub mod waits;
#[cfg(all(feature = "std", not(feature = "shuttle")))]
pub mod workload;
