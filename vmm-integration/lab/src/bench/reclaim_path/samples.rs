// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults, as a process times them itself.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

/// A touch that takes less has found its page mapped.
const NO_FAULT: Duration = Duration::from_nanos(500);
/// A touch that takes less has not slept: nothing is asked about it.
const SHORT: Duration = Duration::from_micros(20);

/// A fault. Times in nanoseconds, at most some four seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Sample {
    /// From the touch on, without the time in which the thread was ready and had no CPU.
    pub(super) latency: u32,
    /// Of that, the time asleep: for a lock, or for the end of a call on the page.
    pub(super) asleep: u32,
    /// With that time.
    pub(super) elapsed: u32,
    /// Whether a report was in flight, as a number that any bytes are valid for.
    pub(super) beside: u32,
}

/// What the kernel says about a thread, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    at: Instant,
    on_cpu: Duration,
    ready: Duration,
}

impl Account {
    /// Of the thread whose `/proc/thread-self/schedstat` this descriptor is. Allocates nothing.
    pub(super) fn read(schedstat: i32) -> io::Result<Self> {
        let mut text = [0; 96];
        // SAFETY: the kernel writes at most as many bytes as there are.
        let len = unsafe { libc::pread(schedstat, text.as_mut_ptr().cast(), text.len(), 0) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        let (on_cpu, ready) = numbers(text.get(..len).unwrap_or_default());
        let [on_cpu, ready] = [on_cpu, ready].map(Duration::from_nanos);
        Ok(Self { at: Instant::now(), on_cpu, ready })
    }
}

/// The first two numbers of a line.
fn numbers(text: &[u8]) -> (u64, u64) {
    let mut words = text.split(|byte| !byte.is_ascii_digit()).filter(|word| !word.is_empty());
    let number = |word: &[u8]| {
        word.iter().fold(0_u64, |sum, digit| {
            sum.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
        })
    };
    (words.next().map_or(0, number), words.next().map_or(0, number))
}

/// Times touches of one thread.
#[derive(Debug)]
pub(super) struct Timer {
    schedstat: i32,
    last: Account,
    end: Instant,
}

impl Timer {
    /// See [`Account::read`].
    pub(super) fn new(schedstat: i32) -> io::Result<Self> {
        let last = Account::read(schedstat)?;
        Ok(Self { schedstat, last, end: last.at })
    }

    /// Times `touch`; none if it was no fault. `in_flight` says whether a report is.
    pub(super) fn time(
        &mut self,
        in_flight: impl Fn() -> bool,
        touch: impl FnOnce(),
    ) -> io::Result<Option<Sample>> {
        let mut start = Instant::now();
        if start.saturating_duration_since(self.end) >= SHORT {
            // The thread was elsewhere between two touches, which is none of the next one's time.
            self.last = Account::read(self.schedstat)?;
            start = Instant::now();
        }
        let before = in_flight();
        touch();
        self.end = Instant::now();
        let elapsed = self.end.saturating_duration_since(start);
        if elapsed < NO_FAULT {
            return Ok(None);
        }
        let beside = before || in_flight();
        let (mut ready, mut asleep) = (Duration::ZERO, Duration::ZERO);
        if elapsed >= SHORT {
            let now = Account::read(self.schedstat)?;
            (ready, asleep) = off_cpu(&self.last, &now);
            (self.last, self.end) = (now, now.at);
        }
        Ok(Some(sample(elapsed, ready, asleep, beside)))
    }
}

/// For how long a thread was ready without a CPU, and for how long it slept.
fn off_cpu(before: &Account, now: &Account) -> (Duration, Duration) {
    let ready = now.ready.saturating_sub(before.ready);
    let on_cpu = now.on_cpu.saturating_sub(before.on_cpu);
    let asleep = now.at.saturating_duration_since(before.at).saturating_sub(ready + on_cpu);
    (ready, asleep)
}

fn sample(elapsed: Duration, ready: Duration, asleep: Duration, beside: bool) -> Sample {
    let latency = elapsed.saturating_sub(ready);
    let ns = |time: Duration| u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
    // What the thread slept is part of the latency, as far as a clock can tell.
    let asleep = if asleep < SHORT { Duration::ZERO } else { asleep.min(latency) };
    Sample {
        latency: ns(latency),
        asleep: ns(asleep),
        elapsed: ns(elapsed),
        beside: u32::from(beside),
    }
}

/// Faults of several rounds.
#[derive(Debug)]
pub(super) struct Faults {
    latencies: Histogram<u64>,
    /// The slowest of each round that has any.
    slowest: Vec<f64>,
    over_a_millisecond: u64,
    asleep: f64,
    elapsed_max: f64,
}

const NS_A_MS: u32 = 1_000_000;

impl Faults {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            latencies: Histogram::new(3)?,
            slowest: Vec::new(),
            over_a_millisecond: 0,
            asleep: 0.0,
            elapsed_max: 0.0,
        })
    }

    /// Adds those of a round.
    pub(super) fn add(&mut self, samples: impl Iterator<Item = Sample>) -> Result<()> {
        let mut slowest = None;
        for sample in samples {
            self.latencies.record(u64::from(sample.latency).max(1)).context("histogram")?;
            self.over_a_millisecond += u64::from(sample.latency > NS_A_MS);
            self.asleep += f64::from(sample.asleep) / 1e3;
            self.elapsed_max = self.elapsed_max.max(f64::from(sample.elapsed) / 1e3);
            slowest = slowest.max(Some(sample.latency));
        }
        self.slowest.extend(slowest.map(|ns| f64::from(ns) / 1e3));
        Ok(())
    }

    pub(super) fn count(&self) -> u64 {
        self.latencies.len()
    }

    pub(super) fn over_a_millisecond(&self) -> u64 {
        self.over_a_millisecond
    }

    /// Microseconds.
    #[allow(clippy::cast_precision_loss)] // figures for people
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Microseconds of the slowest fault of a round, the median of the rounds.
    pub(super) fn slowest(&self) -> f64 {
        median(&self.slowest)
    }

    /// Microseconds of the slowest fault of all, and with the time in which it had no CPU.
    #[allow(clippy::cast_precision_loss)] // figures for people
    pub(super) fn max(&self) -> (f64, f64) {
        (self.latencies.max() as f64 / 1e3, self.elapsed_max)
    }

    /// Microseconds asleep, of all together.
    pub(super) fn asleep(&self) -> f64 {
        self.asleep
    }
}

/// The value in the middle.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_line_gives_both_times() {
        assert_eq!(numbers(b"288668297 966623746 96\n"), (288_668_297, 966_623_746));
        assert_eq!(numbers(b""), (0, 0));
    }

    #[test]
    fn time_without_a_cpu_is_not_latency() {
        let us = Duration::from_micros;
        let start = Instant::now();
        let account = |at, on_cpu, ready| Account {
            at: start + us(at),
            on_cpu: us(on_cpu),
            ready: us(ready),
        };
        let (ready, asleep) = off_cpu(&account(0, 5, 100), &account(1000, 205, 400));
        assert_eq!((ready, asleep), (us(300), us(500)));
        let sample = sample(us(900), ready, asleep, true);
        assert_eq!((sample.latency, sample.asleep), (600_000, 500_000));
        assert_eq!((sample.elapsed, sample.beside), (900_000, 1));
    }

    #[test]
    fn slowest_is_the_median_of_the_rounds() {
        let mut faults = Faults::new().unwrap();
        for worst in [500, 7_000_000, 900_000] {
            let of = |latency| Sample { latency, elapsed: latency, ..Sample::default() };
            faults.add([of(100), of(worst), of(300)].into_iter()).unwrap();
        }
        faults.add(std::iter::empty()).unwrap();
        assert!((faults.slowest() - 900.0).abs() < 1e-9, "{}", faults.slowest());
        assert_eq!((faults.count(), faults.over_a_millisecond()), (9, 1));
        assert!(faults.max().0 > 6990.0);
        assert!(median(&[]).is_nan());
    }
}
