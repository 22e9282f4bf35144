// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One run of the demo: lets a guest fill and free memory, and measures both sides.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use vmm_integration::guest::Guest;
use vmm_integration::measure::host::{Sample, Sampler, passes, wait_until};

use super::screen::Screen;
use super::table::ratio;

/// How often both sides are looked at.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// How often the host's side is asked while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long freed memory may take to come back. Linux needs three passes of two seconds at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing has changed for this long: the guest has no more to report. A pass comes every 2 s.
const QUIET: Duration = Duration::from_secs(3);
/// How long the daemon may take to sum up and to end.
pub(super) const WIND_UP: Duration = Duration::from_secs(5);
/// The share of the guest's memory that each round fills, and the share that stays in use
/// throughout, as divisors.
const FILL: u64 = 2;
const KEEP: u64 = 16;
/// Names of the two allocations in the guest.
const KEPT: u32 = 0;
const FILLED: u32 = 1;

/// Set by Ctrl-C, which ends QEMU and the daemon too: they are in the terminal's foreground.
pub(super) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whose device gives the memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Device {
    /// Ours, over vhost-user.
    Daemon,
    /// QEMU's own virtio-balloon.
    Qemu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "vhost-device-balloon",
            Self::Qemu => "QEMU's own device",
        })
    }
}

/// What one run has shown.
#[derive(Serialize)]
pub(super) struct Run {
    pub(super) device: Device,
    /// What the guest is, in one sentence.
    pub(super) guest: String,
    pub(super) memory_bytes: u64,
    pub(super) rounds: Vec<Round>,
    /// Descriptor chains of the reporting queue; QEMU does not count them.
    pub(super) reports: Option<u64>,
    pub(super) ranges: u64,
    pub(super) discard_calls: u64,
    pub(super) verified_bytes: u64,
    pub(super) lost_bytes: u64,
    pub(super) curve: Vec<Sample>,
}

/// One filling and freeing.
#[derive(Serialize)]
pub(super) struct Round {
    pub(super) freed_bytes: u64,
    /// By how much the guest's resident memory fell after the free.
    pub(super) returned_bytes: u64,
    /// From the free until 90 % were back; none if they never were.
    pub(super) seconds_to_90: Option<f64>,
    /// Reporting passes of the guest until then.
    pub(super) passes: usize,
}

impl Run {
    pub(super) fn freed_bytes(&self) -> u64 {
        self.rounds.iter().map(|round| round.freed_bytes).sum()
    }

    pub(super) fn returned_bytes(&self) -> u64 {
        self.rounds.iter().map(|round| round.returned_bytes).sum()
    }

    pub(super) fn returned_percent(&self) -> f64 {
        100.0 * ratio(self.returned_bytes(), self.freed_bytes())
    }

    /// What went wrong, if anything did.
    pub(super) fn fault(&self) -> Option<&'static str> {
        if self.lost_bytes > 0 {
            Some("memory in use was lost")
        } else if self.rounds.iter().any(|round| round.seconds_to_90.is_none()) {
            Some("less than 90 % of what the guest freed came back")
        } else {
            None
        }
    }
}

/// What the rounds have shown.
pub(super) struct Outcome {
    pub(super) rounds: Vec<Round>,
    pub(super) verified_bytes: u64,
    pub(super) lost_bytes: u64,
    pub(super) curve: Vec<Sample>,
}

/// Runs the rounds and draws the curve live.
///
/// # Errors
/// If the guest fails, or Ctrl-C was pressed.
pub(super) fn watch(
    guest: &dyn Guest,
    sampler: Sampler,
    memory_bytes: u64,
    rounds: u32,
) -> Result<Outcome> {
    let outcome = draw(guest, &sampler, memory_bytes, rounds);
    let curve = sampler.stop()?;
    if interrupted() {
        bail!("interrupted");
    }
    Ok(Outcome { curve, ..outcome? })
}

/// Runs the rounds on a thread of their own and draws the curve on this one until they are done.
fn draw(guest: &dyn Guest, sampler: &Sampler, memory_bytes: u64, rounds: u32) -> Result<Outcome> {
    let doing = Mutex::new(String::new());
    let say = |text: String| {
        if let Ok(mut doing) = doing.lock() {
            *doing = text;
        }
    };
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = done.send(work(guest, sampler, memory_bytes, rounds, &say));
        });
        let mut screen = Screen::new();
        loop {
            let outcome = finished.recv_timeout(SAMPLE_EVERY);
            let text = doing.lock().map(|text| text.clone()).unwrap_or_default();
            screen.show(&text, memory_bytes, &sampler.samples())?;
            match outcome {
                Ok(outcome) => {
                    screen.end();
                    return outcome;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(error @ RecvTimeoutError::Disconnected) => return Err(error.into()),
            }
        }
    })
}

/// Fills, verifies and frees; what is kept from before the first round must outlive them all.
fn work(
    guest: &dyn Guest,
    sampler: &Sampler,
    memory_bytes: u64,
    rounds: u32,
    say: &dyn Fn(String),
) -> Result<Outcome> {
    say("starting to report".to_owned());
    guest.set_reporting(true)?;
    let (mut verified_bytes, mut lost_bytes) = (0, 0);
    let mut done = Vec::new();
    let keep = memory_bytes / KEEP;
    let fill = memory_bytes / FILL;
    let mut verify = |id| -> Result<()> {
        let contents = guest.verify(id)?;
        verified_bytes += contents.checked_bytes;
        lost_bytes += contents.lost_bytes;
        Ok(())
    };
    guest.alloc(KEPT, keep, 0)?;
    for round in 1..=rounds {
        say(format!("round {round} of {rounds}: the guest fills {} MiB", fill >> 20));
        guest.alloc(FILLED, fill, u16::try_from(round)?)?;
        say(format!("round {round} of {rounds}: the guest verifies what it wrote"));
        verify(FILLED)?;
        say(format!("round {round} of {rounds}: the guest has freed it"));
        done.push(free(guest, sampler, fill)?);
        verify(KEPT)?;
    }
    Ok(Outcome { rounds: done, verified_bytes, lost_bytes, curve: Vec::new() })
}

/// Lets the guest free what it filled, and waits until the host has it back and nothing more comes.
fn free(guest: &dyn Guest, sampler: &Sampler, freed_bytes: u64) -> Result<Round> {
    let before = guest.resident_bytes()?;
    let curve_before = sampler.samples();
    let freed = Instant::now();
    guest.free(FILLED)?;
    let wanted = before.saturating_sub(freed_bytes / 10 * 9);
    let back = wait_until(PATIENCE, LOOK_EVERY, || {
        let now = resident(guest)?;
        if now <= wanted || interrupted() {
            Ok(())
        } else {
            Err(format!("{now} bytes, {wanted} wanted"))
        }
    });
    let seconds_to_90 = back.is_ok().then(|| freed.elapsed().as_secs_f64());

    let mut lowest = guest.resident_bytes()?;
    let mut since_lowest = Instant::now();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let now = resident(guest)?;
        // A few pages come and go in a guest that does nothing.
        if now + (1 << 20) < lowest {
            (lowest, since_lowest) = (now, Instant::now());
        }
        let quiet = since_lowest.elapsed() >= QUIET;
        if quiet || interrupted() { Ok(()) } else { Err("still falling".to_owned()) }
    })?;
    // What the guest had freed before counts elsewhere.
    let returned_bytes = before.saturating_sub(lowest).min(freed_bytes);

    let freed_at = curve_before.last().map_or(0.0, |sample| sample.seconds);
    // The sample that shows the fall is taken after it.
    let lag = 2.0 * SAMPLE_EVERY.as_secs_f64();
    let back_at = freed_at + lag + seconds_to_90.unwrap_or(f64::INFINITY);
    let curve = sampler.samples();
    let until_back: Vec<Sample> =
        curve.into_iter().filter(|sample| (freed_at..=back_at).contains(&sample.seconds)).collect();
    let passes = passes(&until_back);
    Ok(Round { freed_bytes, returned_bytes, seconds_to_90, passes })
}

fn resident(guest: &dyn Guest) -> Result<u64, String> {
    guest.resident_bytes().map_err(|error| error.to_string())
}
