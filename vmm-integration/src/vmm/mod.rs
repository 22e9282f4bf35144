// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMMs that put a guest before the daemon.

pub mod model;
pub(crate) mod process;
pub mod qemu;
pub mod user_mode_linux;
