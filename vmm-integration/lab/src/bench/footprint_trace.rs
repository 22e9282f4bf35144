// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The workload of `footprint`: one trace like that of a compilation for every guest.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::workload::trace::Action;
use guest_driver::workload::{Build, Trace, compile_like};

use super::guests::CPUS;

/// What of the memory the programs may have, the rest being the guest's own.
const SPARE: f64 = 0.55;
/// Of the span, each of the two pauses.
const PAUSE: f64 = 0.2;
/// What linking takes in such a trace, in seconds.
const LINK: f64 = 1.6;
/// How long a compiler lives on the average, in seconds.
const COMPILER: f64 = 0.55;

/// The trace for a guest of so many bytes, about `span` seconds long; the same for every device.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
pub(super) fn trace(seed: u64, memory: u64, span: f64) -> Trace {
    let compiling = (span * (1.0 - 2.0 * PAUSE) - LINK).max(COMPILER);
    compile_like(Build {
        cpus: CPUS,
        jobs: (compiling * CPUS as f64 / COMPILER).ceil() as usize,
        peak_pages: (memory as f64 * SPARE) as u64 / PAGE_BYTES,
        pause: Duration::from_secs_f64(span * PAUSE),
        seed,
    })
}

/// Something that a real guest is asked for at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) name: u32,
    /// Bytes that are taken; none when those of that name are freed.
    pub(super) bytes: Option<u64>,
}

/// The trace in larger pieces, since each takes a message: blocks that one CPU takes at the same
/// time, and that are freed at the same time, are one. What is freed at the time at which it was
/// taken is left out.
pub(super) fn pieces(trace: &Trace) -> Vec<Event> {
    let mut taken = HashMap::new();
    let mut pieces: BTreeMap<_, u64> = BTreeMap::new();
    let end = trace.duration();
    let mut add = |(from, cpu, bytes), to| {
        if from < to {
            *pieces.entry((from, cpu, to)).or_default() += bytes;
        }
    };
    for event in trace.events() {
        match event.action {
            Action::Alloc { order, .. } => {
                taken.insert(event.id, (event.at, event.cpu, PAGE_BYTES << order));
            }
            Action::Free => {
                if let Some(block) = taken.remove(&event.id) {
                    add(block, event.at);
                }
            }
        }
    }
    taken.into_values().for_each(|block| add(block, end));
    let mut events: Vec<Event> = (1..)
        .zip(pieces)
        .flat_map(|(name, ((from, _, to), bytes))| {
            [(from, Some(bytes)), (to, None)].map(|(at, bytes)| Event { at, name, bytes })
        })
        .collect();
    // What is freed makes room first.
    events.sort_by_key(|event| (event.at, event.bytes.is_some(), event.name));
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_takes_its_span_and_fits() {
        for span in [6.0, 12.0, 60.0] {
            let trace = trace(1, 1 << 30, span);
            let took = trace.duration().as_secs_f64();
            assert!((0.6..1.4).contains(&(took / span)), "{took} s of {span} s");
            assert!(trace.peak_pages() * PAGE_BYTES <= (1 << 30) / 100 * 55);
            assert_eq!(trace.cpus(), CPUS);
        }
    }

    #[test]
    fn pieces_hold_what_the_trace_holds_and_free_it() {
        let trace = trace(3, 1 << 30, 12.0);
        let events = pieces(&trace);
        assert!(events.len() < trace.events().len() / 4, "{}", events.len());
        let (mut alive, mut now, mut peak) = (BTreeMap::new(), 0, 0);
        for event in &events {
            match event.bytes {
                Some(bytes) => {
                    assert_eq!(alive.insert(event.name, bytes), None);
                    now += bytes;
                }
                None => now -= alive.remove(&event.name).unwrap(),
            }
            peak = peak.max(now);
        }
        assert!(alive.is_empty());
        // What lives for no time is not there.
        let whole = trace.peak_pages() * PAGE_BYTES;
        assert!((whole / 10 * 8..=whole).contains(&peak), "{peak} of {whole}");
    }

    #[test]
    fn blocks_of_one_cpu_and_lifetime_are_one_piece() {
        let text = "0 0 alloc 1 0\n0 0 alloc 2 1\n0 1 alloc 3 0\n5 0 free 1\n5 0 free 2\n\
                    5 1 alloc 4 0\n5 1 free 4\n9 1 alloc 5 0\n";
        let events = pieces(&text.parse().unwrap());
        let micros = |at, name, bytes| Event { at: Duration::from_micros(at), name, bytes };
        let expected = [
            micros(0, 1, Some(3 * 4096)),
            micros(0, 2, Some(4096)),
            micros(5, 1, None),
            micros(9, 2, None),
        ];
        assert_eq!(events, expected);
    }
}
