// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU with a Linux guest: an unmodified Debian kernel with our agent as its init.
//!
//! [`available`] sets everything up (once a machine, without root, without installing anything)
//! and returns a [`Toolbox`]; [`LinuxGuest::boot`] starts a guest from it:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};
//!
//! let toolbox = qemu::available()?;
//! let config = GuestConfig { balloon: Balloon::Qemu, ..GuestConfig::default() };
//! let guest = LinuxGuest::boot(&toolbox, config)?;
//! guest.load_balloon_driver("")?;
//! guest.agent().alloc(1, 300 << 20, 0)?;
//! guest.agent().free(1)?;
//! println!("the host holds {} bytes for it", guest.resident_bytes()?);
//! guest.quit()?;
//! # Ok(())
//! # }
//! ```
//!
//! Two environment variables each replace a part that would be fetched: `QEMU`, the path of a
//! qemu-system-x86_64 of version 10.2 or later, and `GUEST_KERNEL`, the path of a kernel image with
//! virtio-pci, virtio-console, 8250 console and initramfs support built in. A third, `GUEST_ACCEL`
//! (`kvm` or `tcg`), replaces the search for a usable accelerator.

mod accel;
mod bare;
pub mod built;
mod config;
mod files;
mod guest;
mod machine;
mod qmp;
pub mod scenes;
mod toolbox;
mod trace;
mod version;

pub use accel::Accel;
pub use bare::BareGuest;
pub use config::{Balloon, GuestConfig};
pub use guest::{Qemu, QemuKvm, QemuOwnDevice};
pub use machine::LinuxGuest;
pub use qmp::QmpClient;
pub use toolbox::{Toolbox, available, available_with, debug_kernel, stable_kernel};
pub use trace::DiscardCount;
