// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A session that uses every part of the daemon once: all queues, the control socket, metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange, GuestRam as _};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
/// How long a step may take: with strace at each call some milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// Options of a daemon that has all that is used here. In place of a call that fails strace enters none,
/// number -1, at which the sandbox would end the daemon.
pub(super) const OPTIONS: [&str; 4] =
    ["--sandbox=none", "--statistics", "--free-page-hints", "--metrics-address=127.0.0.1:0"];

/// Guest memory: some that is in use, and some that is reported.
pub(super) struct Memory {
    ram: Ram,
    used: GpaRange,
    free: GpaRange,
    balloon: Gpa,
}

impl Memory {
    pub(super) fn new() -> Result<Self> {
        let ram = Ram::new(&RamLayout::flat(16 * MIB, Backing::Memfd))?;
        let range = |start, bytes| GpaRange::new(Gpa(start), bytes).context("no range");
        let (used, free) = (range(4 * MIB, 4 * MIB)?, range(8 * MIB, 2 * MIB)?);
        ram.write_pattern(used, 7)?;
        Ok(Self { ram, used, free, balloon: Gpa(12 * MIB) })
    }

    /// # Errors
    /// When memory in use is not as it was.
    pub(super) fn check(&self) -> Result<()> {
        self.ram.verify_pattern(self.used, 7).context("memory in use was lost")
    }
}

/// Serves one session from its first message to its end.
///
/// # Errors
/// The step that was refused or not answered, and why.
pub(super) fn serve(daemon: &DaemonProcess, memory: &Memory) -> Result<()> {
    let options = AttachOptions { timeout: PATIENCE, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &memory.ram, options)?;
    let given_back = guest.given_back(memory.free).context("report")?;
    ensure!(given_back, "a report was returned and its memory kept");
    let pages = guest.scratch().start();
    let page = u32::try_from(memory.balloon.0 / 4096)?;
    memory.ram.write(pages, &page.to_le_bytes())?;
    for queue in [BalloonQueue::Inflate, BalloonQueue::Deflate] {
        let queue = guest.index(queue).context("a queue is missing")?;
        guest.submit_and_wait(queue, &[Buffer::readable(pages, 4)]).context("balloon")?;
    }
    operate(daemon).context("control")?;
    scrape(daemon).context("metrics")?;
    let given_back = guest.given_back(memory.free).context("second report")?;
    ensure!(given_back, "a report was returned and its memory kept");
    guest.stop().context("stopping the queues")?;
    Ok(())
}

/// What an operator does.
fn operate(daemon: &DaemonProcess) -> Result<()> {
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    control.get("/v1/status")?;
    control.done("PUT", "/v1/target", "{\"bytes\":1048576}")?;
    let pin = "{\"address\":0,\"bytes\":4096}";
    control.done("PUT", "/v1/pins", pin)?;
    control.done("POST", "/v1/pause", "")?;
    control.done("POST", "/v1/resume", "")?;
    control.done("DELETE", "/v1/pins", pin)?;
    control.done("PUT", "/v1/target", "{\"bytes\":0}")?;
    Ok(())
}

/// What a collector of metrics does.
fn scrape(daemon: &DaemonProcess) -> Result<()> {
    let log = daemon.log();
    let address = log.lines().find_map(|line| line.split_once("metrics on http://"));
    let (_, address) = address.with_context(|| format!("no metrics: {log}"))?;
    let address = address.split(['/', ' ']).next().unwrap_or_default();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
