// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every step keeps to, whatever it is told, and what comes of many steps.

use std::time::Duration;

use balloon_policy::{Action, Decision, GuestSeen, HostSeen, Policy, Rules, Sample, Seen, Why};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PERIOD: Duration = Duration::from_secs(10);

fn rules(text: &str) -> Rules {
    Rules::from_toml(text).expect("rules")
}

/// A guest that uses so much, whose page cache fills all that it is left, and whose balloon follows.
#[derive(Clone, Debug)]
struct Guest {
    memory: u64,
    used: u64,
    target: u64,
    /// What its daemon says of it besides.
    sample: Sample,
    answers: bool,
    resident: u64,
}

impl Guest {
    fn new(memory: u64, used: u64) -> Self {
        let sample = Sample::default();
        Self { memory, used, target: 0, sample, answers: true, resident: memory }
    }

    fn seen(&self, name: usize) -> GuestSeen {
        let total = self.memory - self.target;
        let sample = Sample {
            age: Duration::from_secs(1),
            total_bytes: total,
            available_bytes: total.saturating_sub(self.used),
            ..self.sample
        };
        GuestSeen {
            name: name.to_string(),
            memory_bytes: Some(self.memory),
            base_bytes: 0,
            target_bytes: self.target,
            actual_bytes: Some(self.target),
            resident_bytes: Some(self.resident.min(total)),
            deflates_on_oom: true,
            sample: Some(sample).filter(|_| self.answers),
        }
    }

    fn obey(&mut self, decision: &Decision) {
        self.target = match decision.action {
            Action::Lease { balloon_bytes } => balloon_bytes,
            // A lease that is not renewed is over by the next step but one.
            Action::Release | Action::Nothing => 0,
        };
    }
}

#[derive(Debug)]
struct Host {
    total: u64,
    policy: Policy,
    now: Duration,
    guests: Vec<Guest>,
}

impl Host {
    fn new(total: u64, text: &str, guests: Vec<Guest>) -> Self {
        Self { total, policy: Policy::new(rules(text)), now: Duration::ZERO, guests }
    }

    fn seen(&self) -> Seen {
        let resident: u64 =
            self.guests.iter().map(|guest| guest.resident.min(guest.memory - guest.target)).sum();
        Seen {
            now: self.now,
            host: HostSeen {
                total_bytes: self.total,
                available_bytes: self.total.saturating_sub(resident),
                stalls: false,
            },
            guests: self.guests.iter().enumerate().map(|(name, guest)| guest.seen(name)).collect(),
        }
    }

    fn step(&mut self) -> Vec<Decision> {
        self.now += PERIOD;
        let decisions = self.policy.step(&self.seen());
        for (guest, decision) in self.guests.iter_mut().zip(&decisions) {
            guest.obey(decision);
        }
        decisions
    }

    fn steps(&mut self, times: u32) -> Vec<Decision> {
        (0..times).map(|_| self.step()).last().expect("a step")
    }
}

#[test]
fn step_roomy_host_leaves_guests_whole() {
    let mut host = Host::new(64 * GIB, "", vec![Guest::new(8 * GIB, GIB); 4]);
    assert!(!host.policy.wants_samples(&host.seen().host));
    for decision in host.steps(10) {
        assert_eq!((decision.action, decision.why), (Action::Nothing, Why::Whole));
    }
}

#[test]
fn step_host_below_reserve_takes_what_can_be_spared() {
    let mut host = Host::new(32 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 4]);
    assert!(host.policy.wants_samples(&host.seen().host));
    let first = host.step();
    assert!(first.iter().all(|decision| decision.why == Why::Unknown), "{first:?}");
    host.steps(2);
    // A step at a time.
    assert_eq!(host.guests[0].target, 8 * GIB / 100 * 6 / 4096 * 4096);
    host.steps(60);
    let available = host.seen().host.available_bytes;
    // A quarter of the band, less what is not worth a move.
    assert!((5 * GIB - 20 * MIB..=5 * GIB).contains(&available), "{} MiB", available / MIB);
    for guest in &host.guests {
        assert!(guest.target.abs_diff(host.guests[0].target) <= 8 * MIB);
    }
}

#[test]
fn step_double_shares_lose_half() {
    let text = "[host]\nreserve = '512M'\nband = '128M'\n[guests.1]\nshares = 200";
    let guests = vec![Guest::new(8 * GIB, GIB); 2];
    let mut host = Host::new(16 * GIB + 256 * MIB, text, guests);
    host.steps(3);
    let taken = [host.guests[0].target, host.guests[1].target];
    // In one step, since less is lacked than a step may take.
    assert!(taken[0] > 0 && (2 * taken[1]).abs_diff(taken[0]) <= 2 * 4096, "{taken:?}");
    assert!((taken[0] + taken[1]).abs_diff(288 * MIB) <= 2 * 4096, "{taken:?}");
}

#[test]
fn step_each_sign_of_pressure_lets_go() {
    type Sign = (fn(&mut Sample), Why);
    let signs: [Sign; 4] = [
        (|sample| sample.oom_kills += 1, Why::OomKill),
        (|sample| sample.swapped_out_bytes += 2 * MIB, Why::SwapOut),
        (|sample| sample.swapped_in_bytes += 2 * MIB, Why::SwapIn),
        (|sample| sample.major_faults += 300, Why::MajorFaults),
    ];
    for (change, why) in signs {
        // Nearly all that the two can spare.
        let text = "[host]\nreserve = '11G'\nband = '1600M'";
        let mut host = Host::new(16 * GIB, text, vec![Guest::new(8 * GIB, GIB); 2]);
        host.steps(60);
        let before = host.guests[0].target;
        assert!(before > 5 * GIB);
        change(&mut host.guests[0].sample);
        let decisions = host.step();
        assert_eq!((decisions[0].action, decisions[0].why), (Action::Release, why));
        // The host lacks memory more than before, and it is taken from the other.
        let decisions = host.steps(20);
        assert_eq!(decisions[0].why, Why::Recovers, "{decisions:?}");
        assert_eq!(host.guests[0].target, 0);
        // Later, never so much again as long as it uses as much.
        host.steps(200);
        let again = host.guests[0].target;
        assert!(again > 0 && again <= before - 8 * GIB / 16, "{} MiB again", again / MIB);
    }
}

#[test]
fn step_scarce_or_deflated_guest_is_let_go() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(30);
    let mut seen = host.seen();
    seen.now += PERIOD;
    let mut scarce = seen.clone();
    scarce.guests[0].sample.as_mut().expect("a sample").available_bytes = 400 * MIB;
    assert_eq!(host.policy.clone().step(&scarce)[0].why, Why::Available);
    let actual = seen.guests[0].actual_bytes.as_mut().expect("a balloon");
    *actual -= 64 * MIB;
    assert_eq!(host.policy.step(&seen)[0].why, Why::Deflated);
}

#[test]
fn step_silent_guest_gets_nothing() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(30);
    assert!(host.guests[0].target > 0);
    host.guests[0].answers = false;
    let decisions = host.step();
    assert_eq!((decisions[0].action, decisions[0].why), (Action::Nothing, Why::NoSample));
    let mut stale = host.seen();
    stale.now += PERIOD;
    stale.guests[1].sample.as_mut().expect("a sample").age = 3 * PERIOD;
    assert_eq!(host.policy.step(&stale)[1].why, Why::NoSample);
}

#[test]
fn step_guest_that_grows_keeps_its_floor_at_once() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '5G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(100);
    host.guests[0].used += 700 * MIB;
    let leave = host.guests[0].memory - host.guests[0].target;
    let needed = host.guests[0].used + GIB;
    let decision = host.step().swap_remove(0);
    assert!(leave >= needed || decision.why == Why::Grown, "{decision:?}");
    assert!(host.guests[0].memory - host.guests[0].target >= needed);
}

#[test]
fn step_roomy_again_gives_all_back() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(60);
    host.total = 64 * GIB;
    let decisions = host.steps(200);
    assert!(decisions.iter().all(|decision| decision.why == Why::Whole), "{decisions:?}");
    assert!(!host.policy.wants_samples(&host.seen().host));
}

/// Guests that do not fill what they are given at once may do so later.
#[test]
fn step_given_memory_is_not_given_twice() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(60);
    for guest in &mut host.guests {
        guest.resident = guest.memory - guest.target;
    }
    // The balloons have 5 GiB, and the host 2 GiB more than it keeps.
    host.total += 5 * GIB;
    host.steps(200);
    let given = |guest: &Guest| guest.memory - guest.target - guest.resident;
    let given: u64 = host.guests.iter().map(given).sum();
    assert!((GIB..=2 * GIB + 32 * MIB).contains(&given), "{} MiB", given / MIB);
}

/// Unless the host has next to nothing left.
#[test]
fn step_guest_given_back_to_is_not_taken_from() {
    let text = "[host]\nreserve = '4G'\n[guest]\nstep_percent = 2";
    let mut host = Host::new(16 * GIB, text, vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(100);
    host.total += 8 * GIB;
    while host.step()[0].why != Why::Given {}
    host.total -= 9 * GIB;
    let decisions = host.steps(20);
    assert_eq!(decisions[0].why, Why::Settles, "{decisions:?}");
    let before = host.guests[0].target;
    host.total -= 2 * GIB;
    assert_eq!(host.step()[0].why, Why::Taken);
    assert!(host.guests[0].target > before);
}

#[test]
fn step_rigid_guest_is_not_touched_unless_allowed() {
    let guests = vec![Guest::new(8 * GIB, GIB); 2];
    for (more, why) in [("", Why::NoDeflateOnOom), ("needs_deflate_on_oom = false", Why::Taken)] {
        let text = format!("[host]\nreserve = '4G'\n[guests.0]\n{more}");
        let mut host = Host::new(16 * GIB, &text, guests.clone());
        host.steps(3);
        let mut seen = host.seen();
        seen.now += PERIOD;
        seen.guests[0].deflates_on_oom = false;
        let decisions = host.policy.step(&seen);
        assert_eq!((decisions[0].why, decisions[1].why), (why, Why::Taken));
    }
}

#[test]
fn step_max_rule_takes_on_a_roomy_host() {
    let text = "[guest]\nmax = '4G'\n[guests.1]\nmax = '1G'";
    let mut host = Host::new(64 * GIB, text, vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(60);
    let left = host.guests.iter().map(|guest| guest.memory - guest.target).collect::<Vec<_>>();
    // The second uses more than its rule lets it have, with its reserve.
    assert_eq!(left, [4 * GIB, 2 * GIB]);
}

#[test]
fn step_excluded_guest_is_released() {
    let mut host = Host::new(16 * GIB, "[host]\nreserve = '4G'", vec![Guest::new(8 * GIB, GIB); 2]);
    host.steps(30);
    host.policy.set_rules(rules("[host]\nreserve = '4G'\n[guests.0]\nmanaged = false"));
    let decision = host.step().swap_remove(0);
    assert_eq!((decision.action, decision.why), (Action::Release, Why::Excluded));
    assert_eq!(host.step()[0].action, Action::Nothing);
}

/// Anything that a daemon may say, with sizes near each other so that the decisions matter.
fn any_guest() -> impl Strategy<Value = GuestSeen> {
    let size = || prop_oneof![8 => 0..16 * GIB, 1 => any::<u64>()];
    let sample = (0..40_u64, size(), size(), 0..3 * MIB, 0..3 * MIB, 0..400_u64, 0..2_u64)
        .prop_map(|(age, total, available, swapped_in, swapped_out, major_faults, oom_kills)| {
            Sample {
                age: Duration::from_secs(age),
                total_bytes: total,
                available_bytes: available,
                swapped_in_bytes: swapped_in,
                swapped_out_bytes: swapped_out,
                major_faults,
                oom_kills,
            }
        });
    let maybe = || prop::option::weighted(0.9, size());
    (maybe(), size(), size(), maybe(), maybe(), prop::option::weighted(0.9, sample)).prop_map(
        |(memory_bytes, base_bytes, target_bytes, actual_bytes, resident_bytes, sample)| {
            GuestSeen {
                name: String::new(),
                memory_bytes,
                base_bytes: base_bytes % 3,
                target_bytes,
                actual_bytes,
                resident_bytes,
                deflates_on_oom: true,
                sample,
            }
        },
    )
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let host = (0..64 * GIB, 0..16 * GIB, any::<bool>());
    (host, prop::collection::vec(any_guest(), 0..6)).prop_map(
        |((total, available, stalls), guests)| {
            let host = HostSeen { total_bytes: total, available_bytes: available, stalls };
            Seen { now: Duration::ZERO, host, guests }
        },
    )
}

/// One after the other, a period apart.
fn any_history() -> impl Strategy<Value = Vec<Seen>> {
    prop::collection::vec(any_seen(), 1..20).prop_map(|mut history| {
        for (at, seen) in history.iter_mut().enumerate() {
            seen.now = PERIOD * u32::try_from(at).expect("few");
            for (name, guest) in seen.guests.iter_mut().enumerate() {
                guest.name = name.to_string();
            }
        }
        history
    })
}

/// A guest with numbers that agree with each other.
fn sane_guest() -> impl Strategy<Value = Guest> {
    (1..16_u64, 1..100_u64, 0..100_u64).prop_map(|(gib, used, resident)| {
        let memory = gib * GIB;
        let used = memory / 100 * used;
        let resident = used + (memory - used) / 100 * resident;
        Guest { resident, ..Guest::new(memory, used) }
    })
}

fn sane_host() -> impl Strategy<Value = Host> {
    (prop::collection::vec(sane_guest(), 1..8), 50..150_u64).prop_map(|(guests, percent)| {
        let memory: u64 = guests.iter().map(|guest| guest.memory).sum();
        Host::new(memory / 100 * percent, "", guests)
    })
}

proptest! {
    #[test]
    fn step_any_history_keeps_floor_and_needs_sample(history in any_history()) {
        let mut policy = Policy::new(Rules::default());
        for seen in &history {
            let decisions = policy.step(seen);
            prop_assert_eq!(decisions.len(), seen.guests.len());
            for (guest, decision) in seen.guests.iter().zip(&decisions) {
                let Action::Lease { balloon_bytes } = decision.action else { continue };
                let (memory, sample) = (guest.memory_bytes.unwrap(), guest.sample.unwrap());
                prop_assert!(sample.age <= 2 * PERIOD);
                let used = sample.total_bytes - sample.available_bytes;
                let leave = memory - balloon_bytes;
                let floor = decision.floor_bytes.unwrap();
                prop_assert!(leave >= floor && leave <= memory - guest.base_bytes);
                let reserve = (memory / 8).max(256 * MIB).min(memory / 2);
                prop_assert!(floor >= used.saturating_add(reserve).min(memory - guest.base_bytes));
                prop_assert!(balloon_bytes.is_multiple_of(4096));
                // A step takes a part of the memory only, beyond what the host does not hold.
                let held = (memory - guest.target_bytes.min(memory)).min(guest.resident_bytes.unwrap_or(u64::MAX));
                prop_assert!(leave.saturating_add(memory / 100 * 6 + 4096) >= held, "{decision:?} of {guest:?}");
            }
        }
    }

    #[test]
    fn step_more_available_leaves_no_guest_less(mut host in sane_host(), steps in 1..30_u32, more in 0..8 * GIB) {
        host.steps(steps);
        let mut seen = host.seen();
        seen.now += PERIOD;
        let left = |available: u64| {
            let mut seen = seen.clone();
            seen.host.available_bytes += available;
            let decisions = host.policy.clone().step(&seen);
            let balloons = decisions.iter().map(|decision| match decision.action {
                Action::Lease { balloon_bytes } => balloon_bytes,
                _ => 0,
            });
            balloons.collect::<Vec<_>>()
        };
        for (less, more) in left(0).into_iter().zip(left(more)) {
            // What is less than 4 MiB is not moved.
            prop_assert!(more <= less + 4 * MIB, "{less} before, {more}");
        }
    }

    #[test]
    fn step_equal_guests_are_left_alike(guest in sane_guest(), percent in 50..100_u64, steps in 1..60_u32) {
        let mut host = Host::new(guest.memory * 3 / 100 * percent, "", vec![guest; 3]);
        host.steps(steps);
        for guest in &host.guests {
            prop_assert!(guest.target.abs_diff(host.guests[0].target) <= 4 * MIB);
        }
    }

    /// Loads that stay as they are: what was given back is not taken again, and in the end nothing moves.
    #[test]
    fn step_steady_loads_never_oscillate(mut host in sane_host()) {
        let mut given = vec![false; host.guests.len()];
        for _ in 0..200 {
            let decisions = host.step();
            for (given, decision) in given.iter_mut().zip(&decisions) {
                *given |= decision.why == Why::Given;
                prop_assert!(!(*given && decision.why == Why::Taken), "{decisions:?}");
                prop_assert!(!decision.why.is_pressure(), "{decisions:?}");
            }
        }
        let before = host.guests.iter().map(|guest| guest.target).collect::<Vec<_>>();
        host.steps(50);
        let after = host.guests.iter().map(|guest| guest.target).collect::<Vec<_>>();
        prop_assert_eq!(before, after);
    }
}
