// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bare guest in QEMU.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::config::{Balloon, GuestConfig, bare_arguments};
use super::files::{Files, read_lossy};
use super::{Accel, QmpClient, Toolbox};
use crate::bare_guest::{Console, Line, image};
use crate::vmm::bare::{BareMachine, BareSpec};
use crate::vmm::process::Process;

/// How long QEMU may take to end once the guest has powered off.
const EXIT_PATIENCE: Duration = Duration::from_secs(30);

/// What QEMU says of a daemon that ends, where it connects again.
const OF_OUTAGE: [&str; 2] = ["Unexpected end-of-file", "Unable to connect character device"];

/// A bare guest. Dropping it kills QEMU and waits until it is gone.
pub struct BareGuest {
    // First, so that it is dropped first.
    process: Process,
    console: Console,
    qmp: QmpClient,
    files: Files,
}

impl BareGuest {
    /// Boots the guest.
    ///
    /// # Errors
    /// When its image cannot be built, or QEMU does not start.
    pub fn boot(toolbox: &Toolbox, accel: Accel, spec: &BareSpec) -> Result<Self> {
        let balloon = Balloon::VhostUser { socket: spec.socket.clone() };
        Self::boot_with(toolbox, accel, spec, balloon)
    }

    /// The same with another device.
    pub(super) fn boot_with(
        toolbox: &Toolbox,
        accel: Accel,
        spec: &BareSpec,
        balloon: Balloon,
    ) -> Result<Self> {
        let config = GuestConfig { balloon, ..config(spec) };
        let image = image()?;
        let folder =
            tempfile::Builder::new().prefix("bare-guest-").tempdir().context("a temp folder")?;
        let files = Files { folder };
        let (port, port_of_qemu) = UnixStream::pair().context("a socket pair")?;
        let (qmp, qmp_of_qemu) = UnixStream::pair().context("a socket pair")?;
        let fds = [port_of_qemu, qmp_of_qemu].map(OwnedFd::from);
        let mut command = toolbox.qemu.command();
        command.args(accel.args()).arg("-kernel").arg(image);
        command.args(bare_arguments(&config, &files, &fds)?);
        let stderr = files.stderr();
        let stderr =
            File::create(&stderr).with_context(|| format!("creating {}", stderr.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = Process::start(command, fds.into())?;
        let qmp = QmpClient::new(qmp).with_context(|| files.tails())?;
        Ok(Self { process, console: Console::new(port)?, qmp, files })
    }
}

fn config(spec: &BareSpec) -> GuestConfig {
    let BareSpec { memory_bytes, growth_bytes, hugetlb_page_bytes, files, .. } = *spec;
    let (least, most) = (memory_bytes >> 20, (memory_bytes + growth_bytes) >> 20);
    let slot = format!("{least}M,slots=1,maxmem={most}M");
    let slot = (growth_bytes > 0).then_some(["-m".to_owned(), slot]);
    let nodes = (0..files).map(|_| memory_bytes / files).filter(|_| files > 1);
    GuestConfig {
        node_bytes: nodes.collect(),
        memory_bytes,
        cpus: 1,
        kernel_args: spec.command_line.clone(),
        qemu_args: slot.into_iter().flatten().collect(),
        hugetlb_page_bytes,
        ..GuestConfig::default()
    }
}

impl BareMachine for BareGuest {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn vmm_pid(&self) -> u32 {
        self.process.pid()
    }

    fn pause(&self) -> Result<()> {
        self.qmp.stop()
    }

    fn resume(&self) -> Result<()> {
        self.qmp.cont()
    }

    fn reboot(&self) -> Result<()> {
        self.qmp.system_reset()
    }

    fn plug_memory(&self, address: u64, bytes: u64) -> Result<()> {
        self.qmp.plug_memory("added", bytes, Some(address))
    }

    fn finish(self: Box<Self>, patience: Duration) -> Result<Vec<Line>> {
        let Self { process, console, files, .. } = *self;
        let lines = console.wait_done(patience);
        let stderr = read_lossy(&files.stderr())?;
        let wrong = stderr.lines().any(|line| !OF_OUTAGE.iter().any(|words| line.contains(words)));
        let lines = lines.with_context(|| format!("QEMU's messages: {stderr:?}"))?;
        let Some(status) = process.wait(EXIT_PATIENCE) else {
            bail!("QEMU did not end after the guest had powered off");
        };
        ensure!(status.success() && !wrong, "QEMU ended with {status}: {stderr}");
        Ok(lines)
    }
}
