// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One host, tick by tick.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use balloon_policy::{Action, GuestSeen, HostSeen, Policy, Rules, Sample, Seen, Why};
use guest_driver::random::Random;
use serde::Serialize;
use vhost_device_balloon::SimulatedDevice;

use crate::faults::Fault;
use crate::guest::{Guest, Memory};
use crate::trace::{Events, Load};

const GIB: u64 = 1 << 30;
/// Time between two looks at the host, and of a policy's step.
pub const TICK: Duration = Duration::from_secs(10);
/// How long a lease is.
const LEASE: Duration = Duration::from_secs(30);
/// How long a VM takes that is started again.
const REBOOT: Duration = Duration::from_secs(60);
/// What was given and is taken again within this time has moved to and fro.
const TO_AND_FRO: Duration = Duration::from_secs(900);

/// How to make a host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Number of guests.
    pub guests: usize,
    /// Bytes of each guest's memory, one of these at random.
    pub sizes: Vec<u64>,
    /// Memory of the guests in hundredths of the host's.
    pub overcommit_percent: u64,
    /// The policy's rules; none for a host without one.
    pub rules: Option<Rules>,
    /// What the guests' programs are, and their faults.
    pub seed: u64,
    /// What happens to many at once.
    pub events: Events,
    /// One guest in so many is faulty; 0 for none.
    pub faulty_one_in: u64,
    /// The policy's process is dead from 10:00 to 11:00.
    pub policy_dies: bool,
    /// Drivers deflate before their guests' OOM killers run.
    pub deflates_on_oom: bool,
}

/// What came of a host's day.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// Hosts in it.
    pub hosts: u64,
    /// Guests in it.
    pub guests: u64,
    /// Bytes of memory that the guests have together.
    pub guest_bytes: u64,
    /// Bytes of memory that the hosts have together.
    pub host_bytes: u64,
    /// How often a guest's OOM killer ran.
    pub guest_ooms: u64,
    /// How often a host had no memory left, and a VM was lost.
    pub lost_vms: u64,
    /// Ticks in which a host had less than its reserve, by thousandths of all.
    pub below_reserve_permille: f64,
    /// Mean bytes that a host holds for its guests.
    pub resident_bytes: u64,
    /// Bytes of hot files that guests read from disk.
    pub read_bytes: u64,
    /// Time that the guests' programs waited for that, by thousandths of all.
    pub stalled_permille: f64,
    /// Signs of pressure that the policy saw, by name.
    pub pressure: BTreeMap<&'static str, u64>,
    /// How often a guest was taken from within 15 minutes of being given back to.
    pub oscillations: u64,
    /// Steps of the policy in which it asked the guests.
    pub steps: u64,
    /// Samples that it asked for.
    pub samples: u64,
    /// Targets that it moved; renewals are not among them.
    pub moves: u64,
    /// Nanoseconds of this machine that the policy took for a guest in a step.
    pub step_nanoseconds: u64,
    /// Bytes of guests' memory below their working sets: a target took what was in use.
    pub below_working_set: u64,
    #[serde(skip)]
    ticks: u64,
    #[serde(skip)]
    stalled: Duration,
    #[serde(skip)]
    below: u64,
    #[serde(skip)]
    resident_sum: u128,
    #[serde(skip)]
    thinking: Duration,
}

impl Outcome {
    /// Adds another host's.
    pub fn add(&mut self, other: &Self) {
        self.hosts += other.hosts;
        self.guests += other.guests;
        self.guest_bytes += other.guest_bytes;
        self.host_bytes += other.host_bytes;
        self.guest_ooms += other.guest_ooms;
        self.lost_vms += other.lost_vms;
        self.read_bytes += other.read_bytes;
        for (sign, times) in &other.pressure {
            *self.pressure.entry(sign).or_default() += times;
        }
        self.oscillations += other.oscillations;
        self.steps += other.steps;
        self.samples += other.samples;
        self.moves += other.moves;
        self.below_working_set += other.below_working_set;
        self.ticks += other.ticks;
        self.stalled += other.stalled;
        self.below += other.below;
        self.resident_sum += other.resident_sum;
        self.thinking += other.thinking;
        self.derive();
    }

    /// Sets what follows from the sums.
    fn derive(&mut self) {
        let ticks = self.ticks.max(1);
        let per_guest = self.guests.max(1) as f64 * (ticks / self.hosts.max(1)) as f64;
        self.stalled_permille =
            self.stalled.as_secs_f64() / (per_guest * TICK.as_secs_f64()) * 1000.0;
        self.below_reserve_permille = self.below as f64 / ticks as f64 * 1000.0;
        self.resident_bytes =
            u64::try_from(self.resident_sum / u128::from(ticks)).unwrap_or(u64::MAX);
        let samples = u128::from(self.samples.max(1));
        self.step_nanoseconds =
            u64::try_from(self.thinking.as_nanos() / samples).unwrap_or(u64::MAX);
    }
}

/// One guest with all that belongs to it.
struct Slot<M> {
    guest: Guest<M>,
    load: Load,
    device: SimulatedDevice,
    fault: Fault,
    /// When the VM runs again; it is lost until then.
    boots: Option<Duration>,
    /// When it was given back to last.
    given: Option<Duration>,
}

/// One host.
pub struct Host<M> {
    bytes: u64,
    /// What the host has for itself.
    own: u64,
    slots: Vec<Slot<M>>,
    policy: Option<Policy>,
    policy_dies: bool,
    deflates_on_oom: bool,
    names: Vec<String>,
    outcome: Outcome,
}

impl<M: Memory> Host<M> {
    /// A host whose guests boot at midnight, all at once.
    pub fn new(config: &HostConfig) -> Self {
        let mut random = Random(config.seed);
        let slot = |_| {
            let size = config.sizes[random.index(config.sizes.len())];
            let guest = Guest::boot(size, config.deflates_on_oom);
            let bytes = guest.bytes();
            Slot {
                load: Load::new(bytes, random.number(), config.events),
                device: SimulatedDevice::new(bytes),
                fault: Fault::of(&mut random, config.faulty_one_in),
                guest,
                boots: None,
                given: None,
            }
        };
        let slots: Vec<Slot<M>> = (0..config.guests).map(slot).collect();
        let guest_bytes = slots.iter().map(|slot| slot.guest.bytes()).sum::<u64>();
        let own = GIB;
        let bytes = guest_bytes * 100 / config.overcommit_percent + own;
        let outcome = Outcome {
            hosts: 1,
            guests: config.guests as u64,
            guest_bytes,
            host_bytes: bytes,
            ..Outcome::default()
        };
        let policy = config.rules.clone().map(Policy::new);
        let names = (0..config.guests).map(|name| name.to_string()).collect();
        Self {
            bytes,
            own,
            slots,
            policy,
            policy_dies: config.policy_dies,
            deflates_on_oom: config.deflates_on_oom,
            names,
            outcome,
        }
    }

    /// Lives for so long, and says what came of it.
    pub fn live(mut self, time: Duration) -> Outcome {
        let mut now = Duration::ZERO;
        while now < time {
            now += TICK;
            self.tick(now);
        }
        self.outcome.derive();
        self.outcome
    }

    fn tick(&mut self, now: Duration) {
        for slot in &mut self.slots {
            slot.live(now, &mut self.outcome);
        }
        let mut available = self.available();
        let deflates_on_oom = self.deflates_on_oom;
        // Out of memory: the kernel kills the process that holds most.
        while available.is_none()
            && let Some(largest) = self.slots.iter_mut().max_by_key(|slot| slot.resident())
        {
            largest.boots = Some(now + REBOOT);
            largest.guest = Guest::boot(largest.guest.bytes(), deflates_on_oom);
            self.outcome.lost_vms += 1;
            available = self.available();
        }
        let available = available.unwrap_or(0);
        let host = HostSeen { total_bytes: self.bytes, available_bytes: available, stalls: false };
        let rules = self.policy.as_ref().map(|policy| policy.rules().host).unwrap_or_default();
        self.outcome.below += u64::from(available < rules.marks(self.bytes).low);
        self.outcome.ticks += 1;
        self.outcome.resident_sum += u128::from(self.bytes - self.own - available);
        let is_dead = self.policy_dies && (36_000..39_600).contains(&(now.as_secs() % 86_400));
        if self.policy.as_ref().is_some_and(|policy| policy.wants_samples(&host)) && !is_dead {
            self.step(host, now);
        }
    }

    /// Bytes that the host has available; `None` if it has less than none.
    fn available(&self) -> Option<u64> {
        let resident: u64 = self.slots.iter().map(Slot::resident).sum();
        (self.bytes - self.own).checked_sub(resident)
    }

    /// Asks the guests, lets the policy decide, and sends its leases.
    fn step(&mut self, host: HostSeen, now: Duration) {
        let Some(policy) = &mut self.policy else { return };
        let asked = self.slots.iter().zip(&self.names).map(|(slot, name)| slot.seen(name, now));
        let seen = Seen { now, host, guests: asked.collect() };
        let began = Instant::now();
        let decisions = policy.step(&seen);
        self.outcome.thinking += began.elapsed();
        self.outcome.steps += 1;
        self.outcome.samples += seen.guests.len() as u64;
        for (slot, decision) in self.slots.iter_mut().zip(&decisions) {
            slot.note(decision.why, now, &mut self.outcome);
            if !slot.runs() || !slot.fault.answers(now) {
                continue;
            }
            match decision.action {
                Action::Nothing => {}
                Action::Release => slot.device.end_lease(),
                Action::Lease { balloon_bytes } => {
                    let before = slot.device.target_bytes();
                    self.outcome.moves += u64::from(before != balloon_bytes);
                    // A refusal would show as a lease that runs out.
                    let sent = slot.device.lease(balloon_bytes, LEASE, now);
                    debug_assert!(sent.is_ok(), "{sent:?}: {decision:?}");
                    let leave = slot.guest.bytes() - balloon_bytes;
                    let used = slot.guest.statistics();
                    let used = used.total_bytes.saturating_sub(used.available_bytes);
                    if slot.fault == Fault::None {
                        self.outcome.below_working_set += used.saturating_sub(leave);
                    }
                }
            }
        }
    }
}

impl<M: Memory> Slot<M> {
    fn runs(&self) -> bool {
        self.boots.is_none()
    }

    fn resident(&self) -> u64 {
        if self.runs() { self.guest.resident() } else { 0 }
    }

    /// A tick of the guest and of its daemon.
    fn live(&mut self, now: Duration, outcome: &mut Outcome) {
        if let Some(at) = self.boots {
            if at > now {
                return;
            }
            self.boots = None;
            self.load.restart(now);
            self.device.connect(self.guest.bytes());
        }
        if self.fault.kills_daemon(now, TICK) {
            // The next daemon knows of no lease.
            self.device.end_lease();
        }
        let lived = self.guest.live(self.load.demand(now, TICK), TICK);
        if lived.oom {
            self.load.restart(now);
            outcome.guest_ooms += 1;
        }
        outcome.read_bytes += lived.read;
        outcome.stalled += lived.stalled;
        self.device.pass_time(now);
        let wanted = u64::from(self.device.num_pages()) * 4096;
        let actual = self.guest.follow(wanted, TICK) / 4096;
        self.device.set_actual(u32::try_from(actual).unwrap_or(u32::MAX));
    }

    /// What the host's program sees of it, asking it for statistics.
    fn seen(&self, name: &str, now: Duration) -> GuestSeen {
        let name = name.to_owned();
        if !self.runs() || !self.fault.answers(now) {
            return GuestSeen { name, ..GuestSeen::default() };
        }
        if let Some(said) = self.fault.says(self.guest.statistics()) {
            self.device.set_statistics(said, now);
        }
        let sample = self.device.statistics(now).map(|(age, said)| Sample {
            age,
            total_bytes: said.total_bytes,
            available_bytes: said.available_bytes,
            major_faults: said.major_faults,
            oom_kills: said.oom_kills,
            ..Sample::default()
        });
        GuestSeen {
            name,
            memory_bytes: self.device.memory_bytes(),
            base_bytes: 0,
            target_bytes: self.device.target_bytes(),
            actual_bytes: self.device.actual_bytes(),
            resident_bytes: Some(self.guest.resident()),
            // The simulation has its own switch, and asks what it would cost.
            deflates_on_oom: true,
            sample,
        }
    }

    fn note(&mut self, why: Why, now: Duration, outcome: &mut Outcome) {
        if why.is_pressure() {
            *outcome.pressure.entry(why.name()).or_default() += 1;
        }
        if why == Why::Given {
            self.given = Some(now);
        }
        if why == Why::Taken && self.given.take().is_some_and(|at| now - at < TO_AND_FRO) {
            outcome.oscillations += 1;
        }
    }
}
