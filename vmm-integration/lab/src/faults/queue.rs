// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver without a guest that meets a fault: what needs a hand on the ring or on the control
//! connection while a chain is being served.

use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;

use super::device::FaultyDevice;
use super::inject::{self, NoDescriptors, Tampering, wait_until_held_up};
use super::outcome::Met;
use super::plan::{Fault, FaultKind, FaultPlan};
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, PageState, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);
/// The rings lie at the start of the first region, what is in use behind them, and then what is
/// reported; all of the second region is reported.
const KEPT: (u64, u64) = (8 * MIB, 8 * MIB);
const FREE: (u64, u32) = (32 * MIB, 8 << 20);
const SECOND: u64 = 128 * MIB;
const SECOND_FREE: u32 = 32 << 20;
const GENERATION: u16 = 1;
/// VHOST_USER_GET_FEATURES, version 1, no payload.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
/// Of its answer: the header, and a number of eight bytes.
const ANSWER_BYTES: usize = 20;

struct Driver {
    ram: Ram,
    device: Attachment,
    queue: u16,
}

impl Driver {
    fn connect(socket: &Path, ram: &Ram, regions: Vec<usize>) -> Result<Self> {
        let options = AttachOptions { regions: Some(regions), ..AttachOptions::default() };
        let device = Attachment::connect(socket, ram, options)?;
        let queue = device.reporting_queue().context("reporting was not acked")?;
        Ok(Self { ram: ram.clone(), device, queue })
    }

    fn submit(&mut self, (start, len): (u64, u32)) -> Result<u16> {
        let head = self.device.ring(self.queue)?.add_chain(&[Buffer::writable(Gpa(start), len)])?;
        self.device.publish(self.queue)?;
        Ok(head)
    }

    /// Reports the free part of the first region, which has to be gone then.
    fn reports(&mut self) -> Result<()> {
        let range = range(FREE.0, u64::from(FREE.1))?;
        self.ram.write_pattern(range, GENERATION)?;
        let buffer = Buffer::writable(Gpa(FREE.0), FREE.1);
        self.device.submit_and_wait(self.queue, &[buffer])?;
        ensure!(self.ram.is_zero(range)?, "a report was returned and not carried out");
        Ok(())
    }
}

fn range(start: u64, len: u64) -> Result<GpaRange> {
    GpaRange::new(Gpa(start), len).context("past 2^64")
}

/// Two regions with a file each, and memory in use in the first.
fn ram() -> Result<Ram> {
    let mut layout = RamLayout::default();
    for start in [0, SECOND] {
        let file = layout.file(Backing::Memfd);
        layout = layout.region(Gpa(start), 64 * MIB, file, 0);
    }
    let ram = Ram::new(&layout)?;
    ram.write_pattern(range(KEPT.0, KEPT.1)?, GENERATION)?;
    ram.write_pattern(range(SECOND, u64::from(SECOND_FREE))?, GENERATION)?;
    Ok(ram)
}

/// Bytes of the memory in use that do not hold what they should.
fn lost_bytes(ram: &Ram) -> Result<u64> {
    let mut lost = 0;
    ram.for_each_page(range(KEPT.0, KEPT.1)?, GENERATION, |_, state| {
        lost += if state == PageState::Intact { 0 } else { 4096 };
        Ok(())
    })?;
    Ok(lost)
}

/// Two chains with the device at once, which returns them in the other order.
pub(super) fn reorder(fault: &Fault) -> Result<Met> {
    let device = FaultyDevice::start(FaultPlan::new(vec![Fault { times: 2, ..fault.clone() }])?)?;
    let ram = ram()?;
    let mut driver = Driver::connect(&device.socket(), &ram, vec![0, 1])?;
    for _ in 0..fault.after {
        driver.reports()?;
    }
    let first = driver.submit(FREE)?;
    let second = driver.submit((SECOND, SECOND_FREE))?;
    let mut returned = Vec::new();
    for _ in 0..2 {
        let used = driver.device.wait_used(driver.queue, TIMEOUT)?;
        returned.push(used.context("a chain was not returned")?.id);
    }
    ensure!(returned == [second, first], "{returned:?} came back of {first} and {second}");
    driver.reports()?;
    let seen = "chains are known by their heads; Linux has one at a time".to_owned();
    let faults = device.served().faults;
    Ok(Met { faults, lost_bytes: lost_bytes(&ram)?, seen, ..Met::default() })
}

/// Faults of the daemon that happen while it serves a chain, or on its control connection.
pub(super) fn meet(fault: &Fault, binary: &Path) -> Result<Met> {
    let daemon = inject::start(fault, binary)?;
    let ram = ram()?;
    let at_first = if fault.kind == FaultKind::NoDescriptors { vec![0] } else { vec![0, 1] };
    let mut driver = Driver::connect(&daemon.socket(), &ram, at_first)?;
    for _ in 0..=fault.after {
        driver.reports()?;
    }
    // Counted from when strace attaches, which is now.
    let fault = &Fault { after: 0, ..fault.clone() };
    let seen = match fault.kind {
        FaultKind::MemoryTable => {
            let after =
                while_served(&mut driver, &daemon, fault, |driver| driver.device.remove_region(1))?;
            returned(&mut driver)?;
            format!("the region went {after:?} later, when the discard was over")
        }
        FaultKind::StopQueue => {
            let mut base = 0;
            let after = while_served(&mut driver, &daemon, fault, |driver| {
                base = driver.device.stop_queue(driver.queue)?;
                Ok(())
            })?;
            returned(&mut driver)?;
            driver.device.start_queue(driver.queue, base)?;
            driver.device.enable_queue(driver.queue, true)?;
            format!("the queue stopped {after:?} later, with its chain returned")
        }
        FaultKind::FrontendHangUp => {
            let slow = Tampering::start(daemon.pid(), fault)?;
            driver.submit((SECOND, SECOND_FREE))?;
            wait_until_held_up(daemon.pid())?;
            drop(driver);
            drop(slow);
            driver = Driver::connect(&daemon.socket(), &ram, vec![0, 1])?;
            "the next frontend is served".to_owned()
        }
        FaultKind::StalledControl => stall(&mut driver, fault)?,
        FaultKind::NoDescriptors => {
            let none_left = NoDescriptors::start(daemon.pid())?;
            let refused = driver.device.add_region(1);
            drop(none_left);
            let refused = refused.err().context("a region was added without a descriptor")?;
            drop(driver);
            driver = Driver::connect(&daemon.socket(), &ram, vec![0, 1])?;
            format!("{refused:#}; the next frontend is served")
        }
        other => bail!("{other} needs a guest"),
    };
    driver.reports()?;
    Ok(Met { faults: 1, lost_bytes: lost_bytes(&ram)?, seen, ..Met::default() })
}

/// Has the daemon discard slowly, and does something meanwhile; returns how long that took, which
/// is not less than the rest of the discard.
fn while_served(
    driver: &mut Driver,
    daemon: &DaemonProcess,
    fault: &Fault,
    act: impl FnOnce(&mut Driver) -> Result<()>,
) -> Result<Duration> {
    let _slow = Tampering::start(daemon.pid(), fault)?;
    let started = Instant::now();
    driver.submit((SECOND, SECOND_FREE))?;
    wait_until_held_up(daemon.pid())?;
    let acted = Instant::now();
    act(driver)?;
    let served = Duration::from_millis(fault.millis());
    ensure!(started.elapsed() >= served, "it did not wait for the chain under way");
    Ok(acted.elapsed())
}

fn returned(driver: &mut Driver) -> Result<()> {
    let used = driver.device.wait_used(driver.queue, TIMEOUT)?;
    used.map(drop).context("the chain under way was not returned")
}

/// Sends half of a message, has reports carried out for as long as the fault lasts, and then sends
/// the rest.
fn stall(driver: &mut Driver, fault: &Fault) -> Result<String> {
    let fd = driver.device.control("the connection", |frontend| Ok(frontend.as_raw_fd()))?;
    // SAFETY: the frontend owns the descriptor and outlives this, which never closes it.
    let mut connection = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(fd) });
    let (half, rest) = GET_FEATURES.split_at(GET_FEATURES.len() / 2);
    connection.write_all(half).context("half of a message")?;
    let stalled = Instant::now();
    let mut reports: u64 = 0;
    while stalled.elapsed() < Duration::from_millis(fault.millis()) {
        driver.reports()?;
        reports += 1;
    }
    connection.write_all(rest).context("the rest of the message")?;
    connection.read_exact(&mut [0; ANSWER_BYTES]).context("the answer")?;
    driver.device.get_config()?;
    Ok(format!("{reports} reports were carried out meanwhile"))
}
