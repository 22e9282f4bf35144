// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest's programs do over virtual time: when they free and allocate, and what.

use guest_driver::page_alloc::Pfn;
use guest_driver::random::Random;

/// Microseconds of a second.
pub(super) const SECOND: u64 = 1_000_000;

/// How frees are spread over memory and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Churn {
    /// Any block, evenly in time.
    Uniform,
    /// Nine of ten in a sixteenth of memory, which moves on slowly.
    Local,
    /// A part of memory that lies together is freed within half a second, and taken again five
    /// seconds later.
    Bursty,
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This block is freed.
    Free(Pfn),
    /// A block is allocated, wherever the allocator likes.
    Allocate,
    /// Nothing, this time.
    Rest,
}

const BURST_PERIOD: u64 = 10 * SECOND;
/// A burst's frees, and half a period later its allocations, take so long.
const BURST: u64 = SECOND / 2;
/// The share of what is in use that a burst frees, as a divisor.
const BURST_SHARE: usize = 2;
/// What is in use swings up and down once in this time.
const SWING_PERIOD: u64 = 20 * SECOND;
/// Of what is looked at elsewhere one in so many is freed: so nine of ten frees are in the hot
/// sixteenth of memory.
const COLD_IN: u64 = 135;
/// The share of memory that is hot, as a divisor, and for how long it stays where it is.
const HOT_SHARE: u32 = 16;
const HOT_STAYS: u64 = 20 * SECOND;

/// Decides what is done next.
pub(super) struct Programs {
    churn: Churn,
    random: Random,
    /// What is in use.
    blocks: Vec<Pfn>,
    /// How many blocks should be, on the average, and by how many more or fewer over a period.
    target: usize,
    swing: usize,
    /// From one step to the next.
    every: u64,
    next_at: u64,
    /// All page frames, for the part of them that is hot.
    frames: u32,
    /// Of a burst: blocks to be freed, and how many are to be taken again.
    to_free: Vec<Pfn>,
    owed: usize,
    burst_at: u64,
}

impl Programs {
    /// Programs that hold `blocks` and free `a_second` of them each second, or in bursts a part at
    /// once. What they hold swings by `swing` percent.
    pub(super) fn new(
        churn: Churn,
        seed: u64,
        frames: u32,
        blocks: Vec<Pfn>,
        a_second: u64,
        swing: usize,
    ) -> Self {
        let target = blocks.len();
        let swing = target * swing / 100;
        let every = match churn {
            // Half of the steps are allocations.
            Churn::Uniform | Churn::Local => SECOND / (2 * a_second).max(1),
            Churn::Bursty => BURST / (target / BURST_SHARE).max(1) as u64,
        };
        Self {
            churn,
            random: Random(seed),
            blocks,
            target,
            swing,
            every: every.max(1),
            next_at: 0,
            frames,
            to_free: Vec::new(),
            owed: 0,
            burst_at: BURST_PERIOD / 2,
        }
    }

    /// When the next step is due.
    pub(super) fn next_at(&self) -> u64 {
        self.next_at
    }

    /// A block that was allocated.
    pub(super) fn took(&mut self, block: Pfn) {
        self.blocks.push(block);
    }

    /// The step that is due.
    pub(super) fn step(&mut self) -> Step {
        let now = self.next_at;
        self.next_at = now + self.every;
        let target = self.target_at(now);
        match self.churn {
            Churn::Uniform => self.replace(target, |_, _| true),
            Churn::Local => {
                let hot = self.frames / HOT_SHARE;
                let moved = u32::try_from(now / HOT_STAYS).unwrap_or(0);
                let start = moved.wrapping_mul(hot) % self.frames.max(1);
                self.replace(target, |random, pfn| {
                    (start..start + hot).contains(&pfn.0) || random.below(COLD_IN) == 0
                })
            }
            Churn::Bursty => self.burst(now),
        }
    }

    /// How many blocks are to be in use: up and down in a straight line, down first.
    fn target_at(&self, now: u64) -> usize {
        let quarter = SWING_PERIOD / 4;
        let phase = now % SWING_PERIOD;
        let part = |time: u64| {
            let part = self.swing as u64 * time / quarter;
            usize::try_from(part).unwrap_or(self.swing)
        };
        match phase / quarter {
            0 => self.target - part(phase),
            1 => self.target - part(2 * quarter - phase),
            2 => self.target + part(phase - 2 * quarter),
            _ => self.target + part(SWING_PERIOD - phase),
        }
    }

    /// Frees or allocates, so that about `target` blocks are in use; frees what `wanted` takes.
    fn replace(&mut self, target: usize, wanted: impl Fn(&mut Random, Pfn) -> bool) -> Step {
        // Near the target either may happen.
        let slack = (target / 200).max(1);
        let free = if self.blocks.len() > target + slack {
            true
        } else if self.blocks.len() + slack < target {
            false
        } else {
            self.random.below(2) == 0
        };
        if !free {
            return Step::Allocate;
        }
        for _ in 0..256 {
            let pick = self.random.index(self.blocks.len());
            if wanted(&mut self.random, self.blocks[pick]) {
                return Step::Free(self.blocks.swap_remove(pick));
            }
        }
        Step::Rest
    }

    fn burst(&mut self, now: u64) -> Step {
        if let Some(block) = self.to_free.pop() {
            if self.to_free.is_empty() {
                // Taken again half a period after the burst began.
                self.next_at = self.burst_at + BURST_PERIOD / 2;
            }
            return Step::Free(block);
        }
        if self.owed > 0 {
            self.owed -= 1;
            if self.owed == 0 {
                self.burst_at += BURST_PERIOD;
                self.next_at = self.burst_at;
            }
            return Step::Allocate;
        }
        if now < self.burst_at {
            self.next_at = self.burst_at;
            return Step::Rest;
        }
        // What lies together is freed together.
        self.blocks.sort_unstable();
        let share = (self.blocks.len() / BURST_SHARE).max(1).min(self.blocks.len());
        if share == 0 {
            return Step::Rest;
        }
        let start = self.random.index(self.blocks.len() - share + 1);
        self.to_free = self.blocks.drain(start..start + share).collect();
        self.owed = share;
        Step::Rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frees in each second, of programs whose allocations all succeed.
    fn run(churn: Churn, seconds: u64) -> (Vec<usize>, Vec<Pfn>) {
        let blocks: Vec<Pfn> = (0..1000).map(|n| Pfn(n * 1024)).collect();
        let mut programs = Programs::new(churn, 1, 1000 * 1024, blocks, 100, 0);
        let mut frees = vec![0; usize::try_from(seconds).unwrap()];
        let mut freed = Vec::new();
        while programs.next_at() < seconds * SECOND {
            let second = usize::try_from(programs.next_at() / SECOND).unwrap();
            match programs.step() {
                Step::Free(pfn) => {
                    frees[second] += 1;
                    freed.push(pfn);
                }
                Step::Allocate => {
                    let pfn = freed.pop().unwrap_or(Pfn(0));
                    programs.took(pfn);
                }
                Step::Rest => {}
            }
        }
        (frees, freed)
    }

    #[test]
    fn uniform_churn_is_even_in_time() {
        let (frees, _) = run(Churn::Uniform, 20);
        assert!(frees.iter().all(|count| (60..140).contains(count)), "{frees:?}");
    }

    #[test]
    fn what_is_in_use_swings() {
        let blocks: Vec<Pfn> = (0..1000).map(|n| Pfn(n * 1024)).collect();
        let mut programs = Programs::new(Churn::Uniform, 1, 1000 * 1024, blocks, 100, 20);
        let (mut least, mut most) = (1000, 1000);
        while programs.next_at() < 20 * SECOND {
            if programs.step() == Step::Allocate {
                programs.took(Pfn(0));
            }
            least = least.min(programs.blocks.len());
            most = most.max(programs.blocks.len());
        }
        assert!((790..=830).contains(&least) && (1170..=1210).contains(&most), "{least} {most}");
    }

    #[test]
    fn local_churn_frees_mostly_in_one_part() {
        let blocks: Vec<Pfn> = (0..1000).map(|n| Pfn(n * 1024)).collect();
        let mut programs = Programs::new(Churn::Local, 1, 1000 * 1024, blocks, 100, 0);
        let (mut hot, mut cold) = (0, 0);
        while programs.next_at() < 10 * SECOND {
            match programs.step() {
                Step::Free(pfn) => {
                    let within = pfn.0 < 1000 * 1024 / 16;
                    *(if within { &mut hot } else { &mut cold }) += 1;
                    programs.took(pfn);
                }
                Step::Allocate | Step::Rest => {}
            }
        }
        assert!((5 * cold..20 * cold).contains(&hot), "{hot} and {cold}");
    }

    #[test]
    fn bursts_come_every_ten_seconds_and_are_taken_again() {
        let (frees, left) = run(Churn::Bursty, 29);
        let busy: Vec<usize> = (0..29).filter(|&second| frees[second] > 0).collect();
        assert_eq!(busy, [5, 15, 25], "{frees:?}");
        assert_eq!(frees[5], 500);
        assert_eq!(left.len(), 500, "the last burst is still free");
    }
}
