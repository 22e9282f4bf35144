// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frontends, guests and clients that mean harm.

#[path = "../support/fuse.rs"]
mod fuse;
#[path = "../support/raw.rs"]
mod raw;

mod blame;
mod hostile_control;
mod hostile_frontend;
mod log_floods;
mod stalled_fuse;
