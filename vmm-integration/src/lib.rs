// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side: guests put in front of the daemon, and what is measured on the host.

pub mod control;
pub mod daemon;
pub mod fetch;
pub mod frontend;
pub mod guest;
pub mod guest_memory;
pub mod hostile;
pub mod linux_guest;
pub mod measure;
pub mod vmm;
