// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rate of the host's time stamp counter, which a guest of KVM has as well.
//!
//! Some VMMs have no timer by which the bare guest can measure it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long it is measured.
const SPAN: Duration = Duration::from_millis(50);
/// Looks, of which the one that was interrupted the least counts.
const LOOKS: usize = 16;

/// A time, and the counter at this time.
struct Look {
    at: Instant,
    ticks: u64,
    /// How long it took.
    took: Duration,
}

/// The option of the bare guest's command line with the rate of this machine's counter.
pub fn option() -> String {
    format!("tsc-khz={}", khz())
}

/// The rate in kHz, measured once.
pub fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(measure)
}

fn measure() -> u64 {
    let begun = look();
    while begun.at.elapsed() < SPAN {
        std::hint::spin_loop();
    }
    let ended = look();
    let microseconds = (ended.at - begun.at).as_micros().max(1);
    let khz = u128::from(ended.ticks.wrapping_sub(begun.ticks)) * 1000 / microseconds;
    u64::try_from(khz).unwrap_or(u64::MAX).max(1)
}

fn look() -> Look {
    let once = |_| {
        let at = Instant::now();
        let ticks = ticks();
        Look { at, ticks, took: at.elapsed() }
    };
    let least = (1..LOOKS).map(once).min_by_key(|look| look.took);
    least.unwrap_or_else(|| once(0))
}

fn ticks() -> u64 {
    // SAFETY: reads a counter.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    // The bare guest runs nowhere else.
    #[cfg(not(target_arch = "x86_64"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_the_same_twice() {
        let rates = [measure(), measure()].map(|khz| khz as f64);
        assert!((rates[0] / rates[1] - 1.0).abs() < 0.05, "{rates:?}");
        assert!(rates[0] > 100_000.0, "slower than any such processor: {rates:?}");
    }
}
