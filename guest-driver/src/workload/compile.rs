// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A trace like that of a compilation, from a seed: many short-lived processes, most of them small
//! and a few large, whose output stays in the page cache; then a link that grows to most of the
//! memory and drops it; then nothing for a while.

use core::time::Duration;

use super::trace::{Action, Trace, TraceEvent};
use crate::random::Random;

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// Compilers run side by side, one a CPU.
    pub cpus: usize,
    /// How many compilers there are, in all.
    pub jobs: usize,
    /// Pages in use at once stay near this, and below it.
    pub peak_pages: u64,
    /// Nothing happens for so long between compiling, linking and the end.
    pub pause: Duration,
    /// What the random numbers begin with.
    pub seed: u64,
}

/// One compiler in so many is a large one.
const LARGE_IN: u64 = 16;
/// And so many times as large.
const LARGE: u64 = 4;
/// Steps in which a process grows.
const STEPS: u64 = 16;
/// The order of what a large process's heap is made of.
const HUGE: u8 = 9;

/// The trace as it grows.
struct Writer {
    events: Vec<TraceEvent>,
    random: Random,
    next_id: u64,
}

/// What a process has, or the page cache.
#[derive(Default)]
struct Owned(Vec<u64>);

impl Writer {
    fn push(&mut self, at: Duration, cpu: usize, id: u64, action: Action) {
        // Whole microseconds, as a trace's are.
        let at = Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or(u64::MAX));
        self.events.push(TraceEvent { at, cpu, id, action });
    }

    fn alloc(&mut self, at: Duration, cpu: usize, order: u8, movable: bool, owned: &mut Owned) {
        let id = self.next_id;
        self.next_id += 1;
        self.push(at, cpu, id, Action::Alloc { order, movable });
        owned.0.push(id);
    }

    fn free_all(&mut self, at: Duration, cpu: usize, owned: Owned) {
        for id in owned.0 {
            self.push(at, cpu, id, Action::Free);
        }
    }

    /// So many pages of a heap: huge pages as far as they fit, and single faults.
    fn heap(&mut self, at: Duration, cpu: usize, mut pages: u64, owned: &mut Owned) {
        while pages > 0 {
            let order = match pages {
                512.. if self.random.below(4) > 0 => HUGE,
                8.. => u8::try_from(self.random.below(4)).unwrap_or(0),
                _ => 0,
            };
            self.alloc(at, cpu, order, true, owned);
            pages -= 1 << order;
        }
    }

    /// One compiler: kernel memory at its start, a heap that grows, and some output that stays.
    fn compiler(&mut self, start: Duration, cpu: usize, pages: u64, cache: &mut Owned) -> Duration {
        let mut own = Owned::default();
        for order in [2, 0, 0, 0] {
            self.alloc(start, cpu, order, false, &mut own);
        }
        let life = Duration::from_millis(100 + self.random.below(900));
        let mut now = start;
        for _ in 0..STEPS {
            let step = u32::try_from(STEPS).unwrap_or(1);
            now += life / step;
            self.heap(now, cpu, pages / STEPS, &mut own);
        }
        self.heap(now, cpu, pages / 32, cache);
        self.free_all(now, cpu, own);
        now
    }
}

/// A trace of `build`; the same for the same seed. All that is allocated is free at its end.
pub fn compile_like(build: Build) -> Trace {
    let Build { cpus, jobs, peak_pages, pause, seed } = build;
    let cpus = cpus.max(1);
    let mut writer = Writer { events: Vec::new(), random: Random(seed), next_id: 0 };
    let mut cache = Owned::default();
    // A large one on every CPU and half of all for the cache are the most that there can be.
    let usual = (peak_pages / 2 / (cpus as u64 * LARGE)).max(STEPS);
    let cache_share = (peak_pages / 2 * 32 / jobs.max(1) as u64).max(STEPS);
    let mut free_at = vec![Duration::ZERO; cpus];
    for _ in 0..jobs {
        // Whoever is through first takes the next.
        let Some(cpu) = (0..cpus).min_by_key(|&cpu| free_at[cpu]) else { break };
        let large = writer.random.below(LARGE_IN) == 0;
        let scale = if large { LARGE } else { 1 };
        let pages = (usual / 2 + writer.random.below(usual / 2 + 1)) * scale;
        free_at[cpu] = writer.compiler(free_at[cpu], cpu, pages.min(cache_share), &mut cache);
    }
    let compiled = free_at.iter().max().copied().unwrap_or_default();

    // The link has nearly all that the cache leaves.
    let mut now = compiled + pause;
    let mut linker = Owned::default();
    for _ in 0..STEPS {
        now += Duration::from_millis(100);
        writer.heap(now, 0, peak_pages * 2 / 5 / STEPS, &mut linker);
    }
    writer.free_all(now, 0, linker);
    now += pause;
    writer.free_all(now, 0, cache);

    let mut events = writer.events;
    // Of those at the same time each CPU's stay as they are.
    events.sort_by_key(|event| event.at);
    match Trace::new(events) {
        Ok(trace) => trace,
        // Every block is allocated once and freed once, later.
        Err(error) => unreachable!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: Build =
        Build { cpus: 3, jobs: 100, peak_pages: 1 << 17, pause: Duration::from_secs(10), seed: 7 };

    #[test]
    fn the_same_seed_is_the_same_trace_and_another_is_not() {
        let trace = compile_like(BUILD);
        assert_eq!(trace, compile_like(BUILD));
        assert_ne!(trace, compile_like(Build { seed: 8, ..BUILD }));
        assert_eq!(trace.to_string().parse(), Ok(trace));
    }

    #[test]
    fn compile_has_phases_and_frees_everything() {
        for seed in 0..20 {
            let trace = compile_like(Build { seed, ..BUILD });
            let peak = trace.peak_pages();
            assert!(peak <= BUILD.peak_pages && peak > BUILD.peak_pages / 4, "{peak}");
            assert_eq!(trace.cpus(), 3);
            let allocs = |event: &&TraceEvent| event.action != Action::Free;
            let allocated = trace.events().iter().filter(allocs).count();
            assert_eq!(allocated * 2, trace.events().len());
            let gaps = trace.events().windows(2);
            let pauses = gaps.filter(|pair| pair[1].at - pair[0].at >= BUILD.pause).count();
            assert_eq!(pauses, 2, "one before the link and one behind it");
        }
    }
}
