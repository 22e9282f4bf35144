// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the programs of a guest want, tick by tick.
//!
//! The shapes are those that public traces of clusters show: a day with a low before dawn and a peak
//! in the evening, jobs that come and go, databases that stand still, machines that idle, a backup at
//! night. Their sizes are assumptions, and stand here.

use std::time::Duration;

use guest_driver::random::Random;
use serde::Serialize;

/// Load at each full hour of a day, in a thousandth of the peak.
const DAY: [u64; 25] = [
    560, 460, 380, 330, 300, 310, 370, 470, 590, 690, 750, 790, 810, 800, 790, 780, 790, 820, 870,
    940, 1000, 970, 850, 700, 560,
];
const HOUR: u64 = 3600;
/// How long a program takes to want all that it wants after a start.
const RAMP: u64 = 300;
/// How long a job takes to have all that it wants.
const JOB_RAMP: u64 = 60;

/// What a guest's programs want in one tick, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Memory that is no page cache.
    pub anonymous: u64,
    /// Files that are read again and again.
    pub hot: u64,
    /// Files that are read once, in this tick.
    pub cold: u64,
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Follows the day.
    Web,
    /// Idles, and runs a job of 20 to 60 minutes every few hours.
    Batch,
    /// Has its memory, and reads.
    Database,
    /// Idles, with a burst now and then.
    Idle,
}

/// Things that happen to many guests at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// One in so many web guests has a leak from 14:00 to 16:00; 0 for none.
    pub leaks_one_in: u64,
}

/// The programs of one guest.
#[derive(Clone, Debug)]
pub struct Load {
    kind: Kind,
    memory: u64,
    random: Random,
    /// A thousandth of its memory that it wants at its peak, and that it reads again and again.
    peak: u64,
    hot: u64,
    /// Seconds that its day is behind.
    late: u64,
    leaks: bool,
    /// When its programs were started, in seconds.
    started: u64,
    /// A job or a burst.
    job: Option<Job>,
}

/// What runs for a time.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// From when and until when, in seconds.
    from: u64,
    until: u64,
    /// What it wants in a thousandth of the memory.
    wants: u64,
}

impl Load {
    /// The programs of a guest with so much memory, as `seed` says.
    pub fn new(memory: u64, seed: u64, events: Events) -> Self {
        let mut random = Random(seed);
        let kind = match random.below(100) {
            0..50 => Kind::Web,
            50..70 => Kind::Batch,
            70..85 => Kind::Database,
            _ => Kind::Idle,
        };
        let (peak, hot) = match kind {
            Kind::Web => (350 + random.below(300), 60 + random.below(120)),
            Kind::Batch => (500 + random.below(250), 40 + random.below(60)),
            Kind::Database => (450 + random.below(200), 100 + random.below(100)),
            Kind::Idle => (60 + random.below(80), 20 + random.below(40)),
        };
        let late = random.below(4) * HOUR / 2;
        let leaks =
            kind == Kind::Web && events.leaks_one_in > 0 && random.below(events.leaks_one_in) == 0;
        Self { kind, memory, random, peak, hot, late, leaks, started: 0, job: None }
    }

    /// Its programs were killed or the guest was rebooted: they start again.
    pub fn restart(&mut self, now: Duration) {
        self.started = now.as_secs();
        self.job = None;
    }

    /// What they want in the tick that ends at `now`, since midnight.
    pub fn demand(&mut self, now: Duration, tick: Duration) -> Demand {
        let (now, tick) = (now.as_secs(), tick.as_secs());
        let day = at_hour((now + 24 * HOUR - self.late) % (24 * HOUR));
        let jitter = 980 + self.random.below(40);
        let wanted = match self.kind {
            Kind::Web => self.peak * (400 + 600 * day / 1000) / 1000 * jitter / 1000,
            Kind::Database => self.peak,
            Kind::Batch => self.job(now, tick, 3 * HOUR, 20 * 60, 40 * 60).max(100),
            Kind::Idle => self.job(now, tick, 8 * HOUR, 5 * 60, 10 * 60).max(self.peak),
        };
        let leak = if self.leaks && (14 * HOUR..16 * HOUR).contains(&(now % (24 * HOUR))) {
            // All of its memory within an hour.
            (now - (14 * HOUR).max(self.started % (24 * HOUR)).min(now)) * 1000 / HOUR
        } else {
            0
        };
        let ramp = (now - self.started.min(now)).min(RAMP);
        let part = |permille: u64| self.memory / 1000 * permille;
        let backup = (3 * HOUR..3 * HOUR + 1200).contains(&(now % (24 * HOUR)));
        let reads = match self.kind {
            Kind::Batch if self.job.is_some() => 40,
            Kind::Web | Kind::Database => 4,
            _ => 1,
        };
        Demand {
            anonymous: part(wanted) / RAMP * ramp + part(leak),
            hot: part(self.hot),
            // Megabytes a second.
            cold: (reads + if backup { 30 } else { 0 }) * tick * (1 << 20),
        }
    }

    /// What a job wants that comes every `every` seconds on the average, in a thousandth.
    fn job(&mut self, now: u64, tick: u64, every: u64, least: u64, more: u64) -> u64 {
        if self.job.is_some_and(|job| job.until <= now) {
            self.job = None;
        }
        if self.job.is_none() && self.random.below(every) < tick {
            let wants = match self.kind {
                Kind::Batch => self.peak - self.random.below(200),
                _ => 300 + self.random.below(150),
            };
            let until = now + least + self.random.below(more);
            self.job = Some(Job { from: now, until, wants });
        }
        self.job.map_or(0, |job| job.wants * (now - job.from + tick).min(JOB_RAMP) / JOB_RAMP)
    }
}

/// The load of a day at this second of it, in a thousandth of the peak.
fn at_hour(second: u64) -> u64 {
    let hour = usize::try_from(second / HOUR).unwrap_or(0);
    let (from, to, passed) = (DAY[hour], DAY[hour + 1], second % HOUR);
    (from * (HOUR - passed) + to * passed) / HOUR
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(10);

    #[test]
    fn demand_same_seed_same_day() {
        let day = || {
            let mut load = Load::new(4 << 30, 7, Events::default());
            (1..8640).map(|tick| load.demand(TICK * tick, TICK)).collect::<Vec<_>>()
        };
        assert_eq!(day(), day());
    }

    #[test]
    fn demand_any_guest_fits_its_memory_unless_it_leaks() {
        for seed in 0..200 {
            let memory = 4 << 30;
            let mut load = Load::new(memory, seed, Events::default());
            for tick in 1..8640 {
                let demand = load.demand(TICK * tick, TICK);
                assert!(demand.anonymous + demand.hot <= memory / 100 * 88, "{load:?}: {demand:?}");
            }
        }
        let leaking = |seed| {
            let mut load = Load::new(1 << 30, seed, Events { leaks_one_in: 1 });
            load.demand(Duration::from_secs(15 * HOUR), TICK).anonymous > 1 << 30
        };
        assert!((0..20).any(leaking));
    }

    #[test]
    fn demand_after_restart_begins_small() {
        let mut load = Load::new(1 << 30, 3, Events::default());
        let before = load.demand(Duration::from_secs(12 * HOUR), TICK).anonymous;
        load.restart(Duration::from_secs(12 * HOUR));
        let after = load.demand(Duration::from_secs(12 * HOUR) + TICK, TICK).anonymous;
        assert!(after < before / 4, "{after} of {before}");
    }
}
