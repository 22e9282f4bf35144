// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An acknowledgement that waits for the host, instead of for a time.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::chain::Chain;

/// Keeps a report from its acknowledgement. Starts open.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Guest physical addresses whose report is kept.
    wanted: Option<Range<u64>>,
    /// The report that is kept.
    kept: Option<Chain>,
}

impl Gate {
    /// Keeps the next report of these addresses.
    pub(super) fn close(&self, addresses: Range<u64>) {
        self.lock().wanted = Some(addresses);
    }

    /// Lets the report that is kept pass, and all that follow.
    pub(super) fn open(&self) {
        *self.lock() = State::default();
        self.changed.notify_all();
    }

    /// Waits for a report that is kept.
    pub(super) fn kept(&self, timeout: Duration) -> Result<Chain> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        while state.kept.is_none() && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.kept.clone().with_context(|| {
            format!("no report within {timeout:?} of the addresses {:x?}", state.wanted)
        })
    }

    /// Returns when the report may be acknowledged.
    pub(super) fn pass(&self, report: &Chain) {
        let mut state = self.lock();
        let wanted = |state: &State| {
            let within = |range: &Range<u64>| report.bytes_within(range.start, range.end) > 0;
            state.wanted.as_ref().is_some_and(within)
        };
        if !wanted(&state) {
            return;
        }
        state.kept = Some(report.clone());
        self.changed.notify_all();
        while state.kept.is_some() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn report(start: u64) -> Chain {
        Chain { at: Instant::now(), bytes: 4096, sizes: vec![4096], starts: vec![start] }
    }

    #[test]
    fn report_of_wanted_addresses_waits_until_opened() {
        let gate = Gate::default();
        gate.pass(&report(0x1000));
        gate.close(0x2000..0x4000);
        gate.pass(&report(0x1000));
        let error = gate.kept(Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("2000..4000"), "{error}");
        thread::scope(|scope| {
            let passed = scope.spawn(|| gate.pass(&report(0x3000)));
            let kept = gate.kept(Duration::from_secs(60)).unwrap();
            assert_eq!(kept.starts, [0x3000]);
            assert!(!passed.is_finished());
            gate.open();
            passed.join().unwrap();
        });
        gate.pass(&report(0x3000));
    }
}
