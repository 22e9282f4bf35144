// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time by the processor's time stamp counter. Its rate comes from channel 2 of the PIT.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::ports::{inb, outb};

const PIT_HZ: u64 = 1_193_182;
const PIT_COMMAND: u16 = 0x43;
const PIT_CHANNEL_2: u16 = 0x42;
/// Channel 2, both bytes, interrupt on terminal count.
const ONE_SHOT: u8 = 0xb0;
/// Gate and output of channel 2.
const GATE: u16 = 0x61;
const GATE_OPEN: u8 = 1;
const SPEAKER: u8 = 2;
const OUTPUT: u8 = 1 << 5;
/// A twentieth of a second.
const TICKS: u16 = 59_659;
/// Looks after which there is no PIT, and looks before which its output cannot have changed.
const MOST_LOOKS: u32 = 10_000_000;
const LEAST_LOOKS: u32 = 3;
const ATTEMPTS: usize = 4;

static START: AtomicU64 = AtomicU64::new(0);
static KHZ: AtomicU64 = AtomicU64::new(1);

/// The counter's rate in kHz; none without a PIT. It is the least of a few: a CPU that the host did not run
/// meanwhile counts too far.
pub(crate) fn measure() -> Option<u64> {
    (0..ATTEMPTS).map(|_| measure_once()).min().flatten()
}

fn measure_once() -> Option<u64> {
    // SAFETY: timer and speaker have no access to memory.
    unsafe {
        outb(GATE, inb(GATE) & !SPEAKER | GATE_OPEN);
        outb(PIT_COMMAND, ONE_SHOT);
        for byte in TICKS.to_le_bytes() {
            outb(PIT_CHANNEL_2, byte);
        }
        let begun = _rdtsc();
        let mut looks = 0;
        while inb(GATE) & OUTPUT == 0 {
            looks += 1;
            if looks > MOST_LOOKS {
                return None;
            }
        }
        let ticks = _rdtsc() - begun;
        (looks >= LEAST_LOOKS).then(|| ticks * PIT_HZ / u64::from(TICKS) / 1000)
    }
}

/// Begins at zero, with a counter of `khz`.
pub(crate) fn start(khz: u64) {
    KHZ.store(khz.max(1), Ordering::Relaxed);
    START.store(ticks(), Ordering::Relaxed);
}

/// Time since [`start`].
pub(crate) fn now() -> Duration {
    let ticks = u128::from(ticks().wrapping_sub(START.load(Ordering::Relaxed)));
    let nanoseconds = ticks * 1_000_000 / u128::from(KHZ.load(Ordering::Relaxed));
    Duration::from_nanos(nanoseconds as u64)
}

fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { _rdtsc() }
}
