// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Secondary MMUs.

mod device;
mod kvm;
mod pinning;
mod setup;

pub use device::{Device, DeviceFlaw, Over};
pub use kvm::{Kvm, KvmFlaw};
pub use pinning::Pinning;
pub use setup::Setup;
