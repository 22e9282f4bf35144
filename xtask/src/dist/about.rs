// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every package says of itself.

pub(super) const NAME: &str = "vhost-device-balloon";
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The daemon of one VM.
    Daemon,
    /// What knows all daemons of a host.
    Host,
}

/// All of them.
pub(super) const PARTS: [Part; 2] = [Part::Daemon, Part::Host];

impl Part {
    /// Its name, which is that of its crate.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Daemon => NAME,
            Self::Host => "vhost-device-balloon-host",
        }
    }

    /// A line about it.
    pub(super) fn summary(self) -> &'static str {
        match self {
            Self::Daemon => SUMMARY,
            Self::Host => "policy, metrics and sight for all balloon daemons of a host",
        }
    }

    /// Its command line.
    pub(super) fn command(self) -> clap::Command {
        match self {
            Self::Daemon => vhost_device_balloon::program::command(),
            Self::Host => vhost_device_balloon_host::program::command(),
        }
    }
}

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
