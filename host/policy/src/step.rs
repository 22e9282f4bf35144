// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One step of the policy.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::decision::{Action, Decision, Why};
use crate::guest::{Known, View};
use crate::rules::{Held, Marks, Rules};
use crate::seen::{GuestSeen, HostSeen, Seen};
use crate::share::{Claim, divide};

/// Less than this is not moved, in bytes.
const LEAST_MOVE: u64 = 4 << 20;
/// How long nothing is given back after something was taken.
const HOLD: Duration = Duration::from_secs(600);
/// Bytes of a page of the balloon.
const PAGE: u64 = 4096;

/// The rules of a host, and what is known of its guests from the steps before.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Rules,
    known: BTreeMap<String, Known>,
    /// The host has fallen below its reserve, and is not yet in the middle of the band.
    taking: bool,
    taken_at: Option<Duration>,
}

impl Policy {
    /// A policy that has seen nothing.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Other rules hold from now on. What is known of the guests stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the next step needs samples of guests. Without, no guest needs to be woken: the host has
    /// more than a band above the mark at which it gives back, and no guest has a lease.
    pub fn wants_samples(&self, host: &HostSeen) -> bool {
        let Marks { low, high } = self.rules.host.marks(host.total_bytes);
        let watched = high.saturating_add(high - low);
        let capped = self.rules.guest.max.is_some()
            || self.rules.guests.values().any(|guest| guest.max.is_some());
        let has_lease = self.known.values().any(|known| known.has_lease);
        capped || self.taking || has_lease || host.stalls || host.available_bytes < watched
    }

    /// How old a sample may be.
    pub fn fresh(&self) -> Duration {
        2 * self.rules.host.period
    }

    /// Decides for each guest, in the order of `seen`.
    pub fn step(&mut self, seen: &Seen) -> Vec<Decision> {
        self.known.retain(|name, _| seen.guests.iter().any(|guest| guest.name == *name));
        let rules: Vec<Held> = seen.guests.iter().map(|guest| self.rules.of(&guest.name)).collect();
        let views: Vec<Result<View, Why>> = seen
            .guests
            .iter()
            .zip(&rules)
            .map(|(guest, rules)| self.look(guest, rules, seen))
            .collect();
        let parts = self.parts(seen, &views, &rules);
        let decide = |((guest, view), part): ((&GuestSeen, &Result<View, Why>), Part)| {
            let known = self.known.entry(guest.name.clone()).or_default();
            let (action, why) = match view {
                Ok(view) => choose(view, part, known.has_lease),
                // What it was left before runs out.
                Err(why @ (Why::Excluded | Why::NoDeflateOnOom)) if known.has_lease => {
                    (Action::Release, *why)
                }
                Err(why) => (Action::Nothing, *why),
            };
            known.has_lease = matches!(action, Action::Lease { .. });
            if why == Why::Given {
                known.given_at = Some(seen.now);
            }
            let view = view.as_ref().ok();
            Decision {
                name: guest.name.clone(),
                action,
                why,
                floor_bytes: view.map(|view| view.floor),
                working_set_bytes: view.map(|view| view.peak),
            }
        };
        seen.guests.iter().zip(&views).zip(parts).map(decide).collect()
    }

    fn look(&mut self, guest: &GuestSeen, rules: &Held, seen: &Seen) -> Result<View, Why> {
        let fresh = self.fresh();
        let known = self.known.entry(guest.name.clone()).or_default();
        let view = known.look(guest, rules, seen.now, fresh);
        if rules.managed { view } else { Err(Why::Excluded) }
    }

    /// What each guest loses or gets for the host's sake.
    fn parts(&mut self, seen: &Seen, views: &[Result<View, Why>], rules: &[Held]) -> Vec<Part> {
        let marks = self.rules.host.marks(seen.host.total_bytes);
        let coming: u64 =
            views.iter().flatten().fold(0, |sum, view| sum.saturating_add(view.coming));
        let expected = seen.host.available_bytes.saturating_add(coming);
        self.taking =
            (seen.host.stalls || expected < marks.low) || (self.taking && expected < marks.aim());
        if self.taking {
            let stalls = if seen.host.stalls { seen.host.total_bytes / 64 } else { 0 };
            // There is no more time for those that were given back to lately.
            let scarce = seen.host.stalls || expected < marks.low / 2;
            let lack = marks.aim().saturating_sub(expected).max(stalls);
            let claims = views.iter().zip(rules).map(|(view, rules)| match view {
                Ok(view) if view.can_lose(scarce) => {
                    let spare = view.spare();
                    // In the proportion of what they can spare, and against that of their shares.
                    let weight = u128::from(spare) * 10_000 / u128::from(rules.shares);
                    Claim { weight, cap: spare.min(view.step) }
                }
                _ => Claim::default(),
            });
            let parts = divide(lack, &claims.collect::<Vec<_>>());
            if parts.iter().any(|part| *part >= LEAST_MOVE) {
                self.taken_at = Some(seen.now);
            }
            return parts.into_iter().map(Part::Take).collect();
        }
        let rests = self.taken_at.is_none_or(|at| seen.now.saturating_sub(at) >= HOLD);
        if !rests || seen.host.available_bytes <= marks.high {
            return vec![Part::Hold; views.len()];
        }
        // What guests with a lease were given and have not yet filled is as good as gone.
        let promised = views.iter().flatten().filter(|view| view.leave < view.whole);
        let promised = promised
            .fold(0_u64, |sum, view| sum.saturating_add(view.leave.saturating_sub(view.resident)));
        let amount = seen.host.available_bytes.saturating_sub(marks.high).saturating_sub(promised);
        let claims = views.iter().zip(rules).map(|(view, rules)| match view {
            Ok(view)
                if view.spared.is_none_or(|why| matches!(why, Why::Inflating | Why::Settles)) =>
            {
                let room = view.ceiling.saturating_sub(view.leave);
                let weight = u128::from(room) * u128::from(rules.shares);
                Claim { weight, cap: room.min(view.step.saturating_mul(2)) }
            }
            _ => Claim::default(),
        });
        divide(amount, &claims.collect::<Vec<_>>()).into_iter().map(Part::Give).collect()
    }
}

/// What a guest loses or gets for the host's sake, in bytes.
#[derive(Clone, Copy, Debug)]
enum Part {
    Take(u64),
    Give(u64),
    Hold,
}

impl View {
    fn can_lose(&self, scarce: bool) -> bool {
        let spared = self.spared.filter(|why| !(scarce && *why == Why::Settles));
        spared.is_none() && self.pressure.is_none()
    }

    /// Bytes that the host holds for the guest and that it can spare.
    fn spare(&self) -> u64 {
        self.leave.min(self.resident).saturating_sub(self.floor)
    }
}

/// What becomes of a guest.
fn choose(view: &View, part: Part, has_lease: bool) -> (Action, Why) {
    let let_go = if has_lease { Action::Release } else { Action::Nothing };
    if let Some(sign) = view.pressure {
        return (let_go, sign);
    }
    if view.spared == Some(Why::Recovers) {
        return (let_go, Why::Recovers);
    }
    let (mut leave, mut why) = (view.leave, Why::Held);
    match part {
        Part::Take(bytes) if bytes >= LEAST_MOVE => {
            (leave, why) = (view.leave.min(view.resident) - bytes, Why::Taken);
        }
        Part::Take(_) => {
            let at_floor = (view.spare() < LEAST_MOVE).then_some(Why::AtFloor);
            why = view.spared.or(at_floor).unwrap_or(Why::Held);
        }
        Part::Give(bytes) if bytes >= LEAST_MOVE => (leave, why) = (view.leave + bytes, Why::Given),
        Part::Give(_) | Part::Hold => {}
    }
    if leave > view.ceiling && view.spared.is_none() {
        // The operator's own limit, approached as everything is.
        leave -= view.step.min(leave - view.ceiling);
        why = Why::Taken;
    }
    if leave < view.floor {
        (leave, why) = (view.floor, if leave < view.leave { why } else { Why::Grown });
    }
    if leave >= view.whole {
        return (let_go, if why == Why::Held { Why::Whole } else { why });
    }
    // A guest that its base target or another's lease keeps small needs none of this policy's.
    if !has_lease && leave >= view.leave && why == Why::Held {
        return (Action::Nothing, Why::Whole);
    }
    let balloon_bytes = (view.memory - leave) / PAGE * PAGE;
    (Action::Lease { balloon_bytes }, why)
}
