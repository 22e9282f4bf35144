// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the service manager that started this process is told, and the names of its sockets.
//!
//! systemd's protocols: descriptors from number 3 on with names (sd_listen_fds(3)), and datagrams to
//! the socket in `NOTIFY_SOCKET` (sd_notify(3)). Without those variables nothing here has an effect.

use log::warn;

use crate::hand_over::tell;

/// Names of the sockets that the service manager listens on (`FileDescriptorName=`).
pub(super) const SOCKETS: [&str; 2] = ["frontend", "control"];

/// Names of the sockets that a daemon listened on itself, in the store for the next one. They differ
/// from [`SOCKETS`]: the files of those belong to the service manager.
pub(super) const OWN_SOCKETS: [&str; 2] = ["own-frontend", "own-control"];

/// The daemon listens, and no daemon before it left a VMM.
pub(super) const READY: &str = "READY=1";
/// No VMM is connected.
pub(super) const WAITING: &str = "STATUS=waiting for a VMM";
/// A VMM is connected.
pub(super) const SERVING: &str = "STATUS=serving a VMM";
/// The daemon shuts down.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Tells the service manager, if there is one.
pub(super) fn notify(states: &[&str]) {
    if let Err(error) = tell(&states.join("\n")) {
        warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
    }
}
