// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon with a control socket, for the tests of that socket.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A daemon with a control socket.
pub(crate) struct Controlled {
    pub(crate) daemon: DaemonProcess,
    pub(crate) control: ControlSocket,
    pub(crate) path: PathBuf,
}

pub(crate) fn start(args: &[&str]) -> Controlled {
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
    let path = daemon.control_socket();
    Controlled { control: ControlSocket::new(&path, SOON), daemon, path }
}

impl Controlled {
    pub(crate) fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let socket = self.daemon.socket();
        Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.control.get("/v1/status").unwrap()
    }

    pub(crate) fn ctl(&self, args: &[&str]) -> (Output, String) {
        ctl(&self.path, args)
    }

    /// What `ctl` prints when it does what it is asked.
    pub(crate) fn shown(&self, args: &[&str]) -> String {
        let (output, errors) = self.ctl(args);
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) fn ctl(socket: &Path, args: &[&str]) -> (Output, String) {
    let mut command = Command::new(BINARY);
    let output = command.args(["ctl", "--control-socket"]).arg(socket).args(args).output().unwrap();
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    (output, errors)
}

pub(crate) fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Whether the mebibyte at this address is given back when it is reported.
pub(crate) fn given_back(guest: &mut Attachment, at: u64) -> bool {
    guest.given_back(range(at, MIB)).unwrap()
}
