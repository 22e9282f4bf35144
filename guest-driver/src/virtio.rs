// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of virtio 1.x: the split ring and the balloon device.

pub mod balloon;
pub mod balloon_driver;
pub mod feature;
pub mod layout;
pub mod ring;
