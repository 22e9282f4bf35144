// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a VMM waits for the answer to a control message while the guest's reporting ring is full
//! of chains of 4 GiB each.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use serde::Serialize;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment, ControlMessage};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

use crate::support::{BINARY, MIB, REPORTING};

/// What each chain names, in 4 KiB pages that are all there when it is sent.
const CHAIN: u64 = 4096 * MIB;
/// Room for the rings before it.
const KEPT: u64 = 16 * MIB;
const SPARE: usize = 1;
const ROUNDS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// The slowest answer to each message.
#[derive(Serialize)]
pub(crate) struct ControlLatency {
    /// Microseconds that the daemon takes for one such chain when no message comes.
    chain_us: u64,
    /// Message and microseconds.
    slowest_us: Vec<(String, u64)>,
}

impl fmt::Display for ControlLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| Duration::from_micros(us).as_secs_f64() * 1e3;
        writeln!(f, "Control messages under a ring full of 4 GiB chains (slowest of {ROUNDS})")?;
        for (message, us) in &self.slowest_us {
            writeln!(f, "  {message:<20} {:8.2} ms      goal: at most 60", ms(*us))?;
        }
        writeln!(f, "  one chain, undisturbed {:6.0} ms", ms(self.chain_us))
    }
}

/// Measures it.
pub(crate) fn measure() -> Result<ControlLatency> {
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default())?;
    let mut layout = RamLayout::flat(KEPT + CHAIN, Backing::Memfd);
    let file = layout.file(Backing::Memfd);
    let ram = Ram::new(&layout.region(Gpa(4 * CHAIN), 2 * MIB, file, 0))?;
    let options =
        AttachOptions { timeout: TIMEOUT, regions: Some(vec![0]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options)?;
    let named = GpaRange::new(Gpa(KEPT), CHAIN).context("no range")?;
    ram.populate(named)?;
    let begin = Instant::now();
    guest.submit_and_wait(REPORTING, &chain()?)?;
    let chain_us = u64::try_from(begin.elapsed().as_micros())?;
    let mut slowest_us = Vec::new();
    for message in ControlMessage::ALL {
        let mut slowest = 0;
        for _ in 0..ROUNDS {
            message.prepare(&mut guest, SPARE)?;
            ram.populate(named)?;
            let took = answer(&mut guest, message)?;
            slowest = slowest.max(u64::try_from(took.as_micros())?);
        }
        slowest_us.push((format!("{message:?}"), slowest));
    }
    Ok(ControlLatency { chain_us, slowest_us })
}

/// 4 GiB in two descriptors.
fn chain() -> Result<[Buffer; 2]> {
    let half = u32::try_from(CHAIN / 2)?;
    Ok([Buffer::writable(Gpa(KEPT), half), Buffer::writable(Gpa(KEPT + CHAIN / 2), half)])
}

/// How long `message` waits once the first chain of a full ring is being served.
fn answer(guest: &mut Attachment, message: ControlMessage) -> Result<Duration> {
    let ram = guest.ram().clone();
    let full = ram.resident_bytes()?;
    let mut chains = 0;
    while guest.ring(REPORTING)?.add_chain(&chain()?).is_ok() {
        chains += 1;
    }
    guest.publish(REPORTING)?;
    wait_until(TIMEOUT, LOOK_EVERY, || {
        let resident = ram.resident_bytes().map_err(|error| error.to_string())?;
        if resident < full { Ok(()) } else { Err("the worker has not begun".to_owned()) }
    })?;
    let sent = Instant::now();
    message.send(guest, REPORTING, SPARE)?;
    let took = sent.elapsed();
    message.undo(guest, REPORTING, SPARE)?;
    for _ in 0..chains {
        wait_until(TIMEOUT, LOOK_EVERY, || {
            let used = guest.ring(REPORTING).and_then(|ring| Ok(ring.pop_used()?));
            let used = used.map_err(|error| error.to_string())?;
            used.ok_or_else(|| "a chain did not come back".to_owned())
        })?;
    }
    Ok(took)
}
