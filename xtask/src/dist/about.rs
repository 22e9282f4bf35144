// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every package says of itself.

pub(super) const NAME: &str = "vhost-device-balloon";
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Counts the packages of one version.
pub(super) const RELEASE: &str = "1";
/// Who answers for the packages. A distributor names itself here.
pub(super) const MAINTAINER: &str =
    "The vhost-device-balloon authors <vhost-device-balloon@localhost>";
pub(super) const SUMMARY: &str = "vhost-user backend for the virtio-balloon device";
pub(super) const DESCRIPTION: &str = "\
Returns the memory that a virtual machine has freed to its host. The guest's
driver reports free pages, and the daemon discards them from the shared memory
that backs the guest. It works with QEMU and VMMs of rust-vmm.";
