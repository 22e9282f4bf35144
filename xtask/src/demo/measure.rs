// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs the rounds of the demo: a guest fills and frees memory, and both sides are measured.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vmm_integration::guest::Guest;
use vmm_integration::measure::host::{Sample, Sampler, passes, wait_until};

use super::run::{Device, Round};
use super::screen::Screen;

/// The interval of samples of guest and host.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// The interval at which a wait reads the host's resident memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The longest time that the host may take to reclaim freed memory. Linux needs at most three
/// passes, two seconds apart.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time that a guest without a device gets instead.
const NO_DEVICE: Duration = Duration::from_secs(4);
/// A time without change after which the guest has no more to report. A pass comes every 2 s.
const QUIET: Duration = Duration::from_secs(3);
/// The longest time for the daemon's summary and its exit.
pub(super) const WIND_UP: Duration = Duration::from_secs(5);
/// The share of the guest's memory that each round fills, and the share that stays in use
/// throughout, as divisors.
const FILL: u64 = 2;
const KEEP: u64 = 16;
/// Names of the two allocations in the guest.
const KEPT: u32 = 0;
const FILLED: u32 = 1;

/// Set by Ctrl-C, which also stops QEMU and the daemon: they are in the terminal's foreground.
pub(super) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What a guest does, with which device.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) device: Device,
    pub(super) memory_bytes: u64,
    pub(super) rounds: u32,
}

/// The results of the rounds.
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
pub(super) fn watch(guest: &dyn Guest, sampler: Sampler, plan: Plan) -> Result<Outcome> {
    let outcome = draw(guest, &sampler, plan);
    let curve = sampler.stop()?;
    if interrupted() {
        bail!("interrupted");
    }
    Ok(Outcome { curve, ..outcome? })
}

/// Runs the rounds on a thread of their own and draws the curve on this one until they are done.
fn draw(guest: &dyn Guest, sampler: &Sampler, plan: Plan) -> Result<Outcome> {
    let doing = Mutex::new(String::new());
    let say = |text: String| {
        if let Ok(mut doing) = doing.lock() {
            *doing = text;
        }
    };
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = done.send(work(guest, sampler, plan, &say));
        });
        let mut screen = Screen::new();
        loop {
            let outcome = finished.recv_timeout(SAMPLE_EVERY);
            let text = doing.lock().map(|text| text.clone()).unwrap_or_default();
            screen.show(&text, plan.memory_bytes, &sampler.samples())?;
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

/// Fills, verifies and frees; memory allocated before the first round must survive all rounds.
fn work(guest: &dyn Guest, sampler: &Sampler, plan: Plan, say: &dyn Fn(String)) -> Result<Outcome> {
    say("starting free page reporting".to_owned());
    let Plan { device, memory_bytes, rounds } = plan;
    let patience = if device == Device::None { NO_DEVICE } else { PATIENCE };
    if device != Device::None {
        guest.set_reporting(true)?;
    }
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
        say(format!("round {round} of {rounds}: the guest freed it"));
        done.push(free(guest, sampler, fill, patience)?);
        verify(KEPT)?;
    }
    Ok(Outcome { rounds: done, verified_bytes, lost_bytes, curve: Vec::new() })
}

/// Frees the filled memory, and waits until the host reclaimed it and resident memory is steady.
fn free(
    guest: &dyn Guest,
    sampler: &Sampler,
    freed_bytes: u64,
    patience: Duration,
) -> Result<Round> {
    let before = guest.resident_bytes()?;
    let curve_before = sampler.samples();
    let freed = Instant::now();
    guest.free(FILLED)?;
    let wanted = before.saturating_sub(freed_bytes / 10 * 9);
    let back = wait_until(patience, LOOK_EVERY, || {
        let now = resident(guest)?;
        if now <= wanted || interrupted() {
            Ok(())
        } else {
            Err(format!("resident memory is {now} bytes (expected at most {wanted})"))
        }
    });
    let seconds_to_90 = back.is_ok().then(|| freed.elapsed().as_secs_f64());

    let mut lowest = guest.resident_bytes()?;
    let mut since_lowest = Instant::now();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let now = resident(guest)?;
        // An idle guest allocates and frees a few pages.
        if now + (1 << 20) < lowest {
            (lowest, since_lowest) = (now, Instant::now());
        }
        let quiet = since_lowest.elapsed() >= QUIET;
        if quiet || interrupted() { Ok(()) } else { Err("still falling".to_owned()) }
    })?;
    // Memory freed earlier counts in its own round.
    let returned_bytes = before.saturating_sub(lowest).min(freed_bytes);

    let freed_at = curve_before.last().map_or(0.0, |sample| sample.seconds);
    // The sample that shows the decrease is later than the decrease.
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
