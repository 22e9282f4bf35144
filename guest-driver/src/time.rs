// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Time since some fixed moment: the machine's, or that of a clock which is set.

use core::time::Duration;

/// Time since some fixed moment; it never goes back.
#[cfg(feature = "std")]
pub fn now() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

/// Time since some fixed moment, by the clock that [`set_clock`] has set; zero without one, so that no
/// time-out ends.
#[cfg(not(feature = "std"))]
pub fn now() -> Duration {
    CLOCK.get().map_or(Duration::ZERO, |clock| clock())
}

#[cfg(not(feature = "std"))]
static CLOCK: crate::sync::OnceLock<fn() -> Duration> = crate::sync::OnceLock::new();

/// Sets the clock, which must never go back. The first one counts.
#[cfg(not(feature = "std"))]
pub fn set_clock(clock: fn() -> Duration) {
    let _ = CLOCK.set(clock);
}
