// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that can be opened up.
//!
//! The library knows nothing of vhost-user or of a VMM: whoever embeds it gives it guest memory
//! ([`ram::GuestRam`]) and carries notifications for it.
//!
//! - [`ram`]: guest physical addresses and how guest memory is reached.
//! - [`pattern`]: contents that prove where a page came from.
//! - [`virtio`]: the driver's side of the split ring and of the balloon device.
//! - [`page_alloc`]: a model of Linux's page allocator.
//! - `workload`: threads that use it as a guest's programs would.
//! - [`reporting`]: what reports its free pages, in the way of 2019 and in mainline's.

extern crate alloc;

pub mod bits;
pub mod page_alloc;
pub mod pattern;
pub mod ram;
pub mod random;
pub mod reporting;
pub mod sync;
pub mod virtio;
#[cfg(not(feature = "shuttle"))]
pub mod workload;
