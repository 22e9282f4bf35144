// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest: how it uses its memory for what its programs want, and how its balloon takes some of it.
//!
//! The rules are a kernel's in short: programs have what they want or the OOM killer runs; page cache
//! takes all that is left, files read once go first; the balloon takes free memory, then page cache, and
//! never what programs have. There is no swap. [`Memory`] says of what the guest is made: of counters,
//! or of the model of Linux's page allocator.

pub mod counted;
pub mod paged;

use std::time::Duration;

use vhost_device_balloon::SimulatedStatistics;

use crate::trace::Demand;

const MIB: u64 = 1 << 20;
/// Bytes that a guest reads from its disk a second.
const DISK: u64 = 200 * MIB;
/// Bytes that a driver inflates or deflates a second.
const BALLOON: u64 = 512 * MIB;
/// Seconds in which programs use all of their hot files once.
const USED_WITHIN: u64 = 60;
/// Bytes that one major fault reads: what is mapped around it, and what is read ahead.
const FAULT: u64 = 256 << 10;

/// What memory is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Programs, and the kernel.
    Anonymous,
    /// Page cache of files that are read again.
    Hot,
    /// Page cache of files that were read once.
    Cold,
    /// The balloon.
    Balloon,
}

impl Use {
    /// All uses.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::Hot, Self::Cold, Self::Balloon];
}

/// Memory of a guest.
pub trait Memory {
    /// Memory of so many bytes, all of it free, which the host does not hold.
    fn new(bytes: u64) -> Self;

    /// Bytes in all.
    fn bytes(&self) -> u64;

    /// Bytes for this use.
    fn used(&self, by: Use) -> u64;

    /// Bytes that are free and can be had: those below the watermarks are not among them.
    fn free(&self) -> u64;

    /// Takes free memory, and returns how many bytes: fewer if there are not so many.
    fn take(&mut self, by: Use, bytes: u64) -> u64;

    /// Frees memory of that use, at least so many bytes unless there are fewer.
    fn give(&mut self, by: Use, bytes: u64);

    /// The guest's reporting works for so long.
    fn report(&mut self, time: Duration);

    /// Bytes that the host holds.
    fn resident(&self) -> u64;
}

/// What came of a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lived {
    /// The OOM killer ran: the programs are gone.
    pub oom: bool,
    /// Bytes of hot files that were read from disk.
    pub read: u64,
    /// Time that the programs waited for it.
    pub stalled: Duration,
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest<M> {
    memory: M,
    major_faults: u64,
    oom_kills: u64,
    /// The driver deflates the balloon before the OOM killer runs (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`).
    deflates_on_oom: bool,
    /// The target that it did so under: it inflates again when there is another.
    deflated_under: Option<u64>,
    /// Bytes that are wanted in the balloon.
    wanted: u64,
}

impl<M: Memory> Guest<M> {
    /// A guest with so much memory that has just booted.
    pub fn boot(bytes: u64, deflates_on_oom: bool) -> Self {
        let mut memory = M::new(bytes);
        memory.take(Use::Anonymous, kernel(bytes));
        Self {
            memory,
            major_faults: 0,
            oom_kills: 0,
            deflates_on_oom,
            deflated_under: None,
            wanted: 0,
        }
    }

    /// Lives on for a tick.
    pub fn live(&mut self, demand: Demand, tick: Duration) -> Lived {
        let mut lived = Lived::default();
        let wanted = demand.anonymous + kernel(self.memory.bytes());
        let has = self.memory.used(Use::Anonymous);
        self.memory.give(Use::Anonymous, has.saturating_sub(wanted));
        let more = wanted.saturating_sub(has);
        self.make_room(more);
        let lacks = more.saturating_sub(self.memory.free());
        if self.deflates_on_oom && lacks > 0 && self.memory.used(Use::Balloon) > 0 {
            self.deflated_under.get_or_insert(self.wanted);
            self.memory.give(Use::Balloon, lacks);
        }
        if self.memory.take(Use::Anonymous, more) + MIB < more {
            self.oom_kills += 1;
            lived.oom = true;
            let has = self.memory.used(Use::Anonymous);
            self.memory.give(Use::Anonymous, has.saturating_sub(kernel(self.memory.bytes())));
        }
        self.read_hot(demand.hot, tick, &mut lived);
        // What is read once displaces only what was.
        let free = self.memory.free();
        self.memory.give(Use::Cold, demand.cold.saturating_sub(free));
        self.memory.take(Use::Cold, demand.cold.min(DISK * tick.as_secs()));
        self.memory.report(tick);
        lived
    }

    fn read_hot(&mut self, hot: u64, tick: Duration, lived: &mut Lived) {
        let has = self.memory.used(Use::Hot);
        self.memory.give(Use::Hot, has.saturating_sub(hot));
        let missing = hot.saturating_sub(has);
        let free = self.memory.free();
        self.memory.give(Use::Cold, missing.saturating_sub(free));
        let read = missing.min(DISK * tick.as_secs());
        let got = self.memory.take(Use::Hot, read);
        // What finds no place is read each time that it is used.
        let again = (missing - got.min(missing)) / USED_WITHIN * tick.as_secs();
        lived.read = (got + again).min(DISK * tick.as_secs());
        lived.stalled = Duration::from_millis(lived.read * 1000 / DISK);
        self.major_faults += lived.read / FAULT;
    }

    /// Drops page cache for so many bytes, files read once first.
    fn make_room(&mut self, bytes: u64) {
        for cache in [Use::Cold, Use::Hot] {
            let free = self.memory.free();
            if free < bytes {
                self.memory.give(cache, bytes - free);
            }
        }
    }

    /// The balloon follows `wanted` bytes for a tick; bytes that are in it then.
    pub fn follow(&mut self, wanted: u64, tick: Duration) -> u64 {
        self.wanted = wanted;
        self.deflated_under = self.deflated_under.filter(|under| *under == wanted);
        let has = self.memory.used(Use::Balloon);
        let most = BALLOON * tick.as_secs();
        if wanted < has {
            self.memory.give(Use::Balloon, (has - wanted).min(most));
        } else if self.deflated_under.is_none() {
            let more = (wanted - has).min(most);
            self.make_room(more);
            self.memory.take(Use::Balloon, more);
        }
        self.memory.used(Use::Balloon)
    }

    /// What the guest says of its memory.
    pub fn statistics(&self) -> SimulatedStatistics {
        let memory = &self.memory;
        let cache = memory.used(Use::Hot) + memory.used(Use::Cold);
        // `si_mem_available`: half of the cache, or the low watermark, is not counted.
        let kept = (cache / 2).min(memory.bytes() / 256);
        SimulatedStatistics {
            total_bytes: memory.bytes() - memory.used(Use::Balloon),
            available_bytes: memory.free() + cache - kept,
            free_bytes: memory.free(),
            major_faults: self.major_faults,
            oom_kills: self.oom_kills,
        }
    }

    /// Bytes that the host holds.
    pub fn resident(&self) -> u64 {
        self.memory.resident()
    }

    /// Bytes of memory in all.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

/// Bytes that a kernel of such a guest has for itself.
fn kernel(bytes: u64) -> u64 {
    bytes / 64 + 64 * MIB
}

#[cfg(test)]
mod tests {
    use super::counted::Counted;
    use super::paged::Paged;
    use super::*;
    use crate::trace::{Events, Load};

    const TICK: Duration = Duration::from_secs(10);
    const GIB: u64 = 1 << 30;

    fn demand(anonymous: u64, hot: u64, cold: u64) -> Demand {
        Demand { anonymous, hot, cold }
    }

    fn uses<M: Memory>(guest: &Guest<M>) -> u64 {
        Use::ALL.iter().map(|by| guest.memory.used(*by)).sum()
    }

    fn balloon_takes_cache_and_never_programs<M: Memory>() {
        let mut guest = Guest::<M>::boot(GIB, false);
        for _ in 0..20 {
            guest.live(demand(256 * MIB, 64 * MIB, 128 * MIB), TICK);
        }
        assert!(guest.statistics().free_bytes < 64 * MIB, "cache takes what is left");
        let actual = guest.follow(GIB, TICK);
        let kept = kernel(GIB) + 256 * MIB;
        assert!(actual <= GIB - kept && actual + 64 * MIB > GIB - kept, "{} MiB", actual / MIB);
        assert!(guest.resident() < kept + 64 * MIB, "{} MiB", guest.resident() / MIB);
        let lived = guest.live(demand(256 * MIB, 64 * MIB, 0), TICK);
        assert!(lived.stalled > Duration::ZERO && !lived.oom);
        assert!(guest.live(demand(300 * MIB, 0, 0), TICK).oom, "there is none for more programs");
        assert_eq!(guest.statistics().oom_kills, 1);
        assert_eq!(guest.follow(0, TICK), 0);
        assert!(!guest.live(demand(300 * MIB, 0, 0), TICK).oom);
        assert!(uses(&guest) <= GIB);
    }

    #[test]
    fn balloon_of_counters_takes_cache_only() {
        balloon_takes_cache_and_never_programs::<Counted>();
    }

    #[test]
    fn balloon_of_pages_takes_cache_only() {
        balloon_takes_cache_and_never_programs::<Paged>();
    }

    #[test]
    fn deflating_on_oom_lasts_until_the_next_target() {
        let mut guest = Guest::<Counted>::boot(GIB, true);
        assert_eq!(guest.follow(512 * MIB, TICK), 512 * MIB);
        assert!(!guest.live(demand(600 * MIB, 0, 0), TICK).oom);
        let left = guest.follow(512 * MIB, TICK);
        assert!(left < 400 * MIB, "{left}");
        guest.live(demand(100 * MIB, 0, 0), TICK);
        assert_eq!(guest.follow(512 * MIB, TICK), left, "it is not told again");
        assert_eq!(guest.follow(500 * MIB, TICK), 500 * MIB);
    }

    #[test]
    fn freed_memory_is_returned_by_reports() {
        let mut guest = Guest::<Paged>::boot(GIB, true);
        guest.live(demand(512 * MIB, 0, 0), TICK);
        let before = guest.resident();
        for _ in 0..3 {
            guest.live(demand(64 * MIB, 0, 0), TICK);
        }
        assert!(guest.resident() + 400 * MIB < before, "{} of {before}", guest.resident());
    }

    /// The two kinds of memory, under one day of the same programs and balloon.
    #[test]
    fn counters_agree_with_pages() {
        for seed in [1, 2, 3] {
            let mut load = Load::new(GIB, seed, Events::default());
            let mut paged = Guest::<Paged>::boot(GIB, true);
            let mut counted = Guest::<Counted>::boot(GIB, true);
            for tick in 1..360 {
                let demand = load.demand(Duration::from_secs(10 * HOURS) + TICK * tick, TICK);
                let wanted = if tick > 180 { 128 * MIB } else { 0 };
                paged.live(demand, TICK);
                counted.live(demand, TICK);
                let balloons = (paged.follow(wanted, TICK), counted.follow(wanted, TICK));
                assert!(balloons.0.abs_diff(balloons.1) <= 16 * MIB, "{balloons:?}");
            }
            let available = [paged.statistics(), counted.statistics()]
                .map(|statistics| statistics.available_bytes);
            assert!(available[0].abs_diff(available[1]) <= 32 * MIB, "{available:?}");
            let resident = [paged.resident(), counted.resident()];
            assert!(resident[0].abs_diff(resident[1]) <= GIB / 16, "{resident:?}");
        }
    }

    const HOURS: u64 = 3600;
}
