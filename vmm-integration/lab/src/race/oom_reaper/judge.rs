// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Figures of several kills, and whether Linux does what the model says.

use std::time::Duration;

use super::guest::Reaped;
use super::holder::{Expected, Holder};
use crate::store::{Findings, Verdict, VerdictKind};

/// A share may be so far from that of the model: the program's own pages are not in the plan.
const NEAR: f64 = 0.04;
/// Of all that KVM can map, so much must have been mapped, or its notifier had nothing to drop.
const MAPPED: f64 = 0.99;

impl Reaped {
    /// The share of the mapped memory that is not mapped any more.
    #[allow(clippy::cast_precision_loss)] // a share
    pub(super) fn unmapped(&self) -> f64 {
        self.before.saturating_sub(self.after) as f64 / self.before.max(1) as f64
    }

    /// Where Linux did something else than the model. Empty if nowhere.
    pub(super) fn differences(&self, holder: Holder, victim_bytes: u64) -> Vec<String> {
        let Expected { unmapped, attempts, another_victim } = holder.expected();
        let mut all = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                all.push(what);
            }
        };
        check(self.stopped, "the victim did not wait before its exit".to_owned());
        let share = self.unmapped();
        let got = format!("a share of {share:.3} was unmapped, expected {unmapped}");
        check((share - unmapped).abs() <= NEAR, got);
        let got = self.traced.attempts();
        check(got == attempts, format!("the reaper took {got} attempts, expected {attempts}"));
        let gives_up = attempts > 1;
        check(
            self.gave_up == gives_up,
            format!("it gave up: {}, expected {gives_up}", self.gave_up),
        );
        let others = self.other_victims;
        let expected = u64::from(another_victim);
        check(others == expected, format!("{others} other victims, expected {expected}"));
        check(
            self.satisfied != another_victim,
            format!("the process that wanted memory had it: {}", self.satisfied),
        );
        if let Some(bytes) = holder.kvm_bytes(victim_bytes) {
            let pages = bytes / 4096;
            let (before, after) = (self.kvm_before, self.kvm_after);
            #[allow(clippy::cast_precision_loss)] // a share
            let mapped = before as f64 >= pages as f64 * MAPPED;
            check(mapped, format!("KVM mapped {before} pages before, expected {pages}"));
            check(after == 0, format!("KVM maps {after} pages after the reaper"));
            let told = self.traced.unmapped_bytes;
            check(told >= bytes, format!("KVM was told of {told} bytes, expected {bytes}"));
        }
        all
    }
}

/// Figures of all kills.
pub(super) fn figures(findings: &mut Findings, all: &[Reaped]) {
    let mut spread = |name: &str, unit: &str, what: &str, of: &dyn Fn(&Reaped) -> Option<f64>| {
        let mut values: Vec<f64> = all.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        let (Some(&lowest), Some(&highest)) = (values.first(), values.last()) else { return };
        findings.figure(name, values[values.len() / 2], unit, &format!("{what}: the middle one"));
        findings.figure(&format!("{name}-least"), lowest, unit, &format!("{what}: the least"));
        findings.figure(&format!("{name}-most"), highest, unit, &format!("{what}: the most"));
    };
    spread("unmapped", "", "share of the memory that was unmapped", &|one| Some(one.unmapped()));
    let attempts = |one: &Reaped| u32::try_from(one.traced.attempts()).ok().map(f64::from);
    spread("attempts", "", "attempts of the reaper", &attempts);
    let from_kill =
        |at: Option<Duration>, one: &Reaped| Some(ms(at?.checked_sub(one.traced.killed)?));
    spread("to-first-attempt", "ms", "from the kill to the first attempt", &|one| {
        from_kill(one.traced.first_attempt(), one)
    });
    spread("to-last-attempt", "ms", "from the kill to the end of the last attempt", &|one| {
        from_kill(one.traced.last_end(), one)
    });
    spread("reaping", "ms", "time with the lock of the address space", &|one| {
        (!one.traced.starts.is_empty()).then(|| ms(one.traced.reaping()))
    });
    spread(
        "returned",
        "ms",
        "from the kill's end until free memory was back with the host",
        &|one| one.returned.map(ms),
    );
    let mut count = |name: &str, what: &str, of: &dyn Fn(&Reaped) -> u64| {
        findings.count(name, all.iter().map(of).sum(), "", what);
    };
    count("kills", "kills of a victim", &|_| 1);
    count("other-victims", "kills of another process for want of memory", &|one| one.other_victims);
    count("gave-up", "kills after which the reaper gave up", &|one| u64::from(one.gave_up));
    count("in-flight-at-kill", "kills at which a report was in flight", &|one| {
        u64::from(one.traced.in_flight_at_kill)
    });
    count("in-flight-at-reaping", "first attempts at which a report was in flight", &|one| {
        u64::from(one.traced.in_flight_at_reaping)
    });
    count("reports", "reports that ended between the kill's begin and its end", &|one| {
        one.traced.reports
    });
    count("kvm-pages", "pages that KVM mapped before", &|one| one.kvm_before);
    count("kvm-pages-after", "pages that KVM mapped after the reaper", &|one| one.kvm_after);
    count("kvm-ranges", "ranges that the reaper had KVM drop", &|one| one.traced.unmapped_ranges);
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Whether Linux did what the model says, in every kill.
pub(super) fn verdict(holder: Holder, all: &[Reaped], victim_bytes: u64, release: &str) -> Verdict {
    let different: Vec<(usize, String)> = (1..)
        .zip(all)
        .filter_map(|(number, one)| {
            let differences = one.differences(holder, victim_bytes);
            (!differences.is_empty()).then(|| (number, differences.join("; ")))
        })
        .collect();
    let Expected { unmapped, attempts, another_victim } = holder.expected();
    let tried =
        if attempts == 1 { "one attempt".to_owned() } else { format!("{attempts} attempts") };
    let also = if another_victim { ", and another process is killed" } else { "" };
    let model = format!("a share of {unmapped} unmapped in {tried}{also}");
    match different.first() {
        None => Verdict {
            kind: VerdictKind::Shown,
            text: format!("Linux {release}: {} kills, each as in the model: {model}", all.len()),
        },
        Some((number, first)) => Verdict {
            kind: VerdictKind::NotShown,
            text: format!(
                "Linux {release}: {} of {} kills not as in the model ({model}); kill {number}: {first}",
                different.len(),
                all.len()
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::race::oom_reaper::trace::Traced;

    const VICTIM: u64 = 64 << 20;

    fn reaped() -> Reaped {
        let at = Duration::from_secs;
        let traced = Traced {
            killed: at(1),
            starts: vec![at(3)],
            ends: vec![at(3)],
            unmapped_ranges: 1,
            unmapped_bytes: VICTIM,
            ..Traced::default()
        };
        Reaped {
            before: VICTIM,
            after: 0,
            kvm_before: VICTIM / 4096,
            kvm_after: 0,
            traced,
            gave_up: false,
            other_victims: 0,
            satisfied: true,
            stopped: true,
            returned: None,
        }
    }

    fn kind(holder: Holder, one: &Reaped) -> VerdictKind {
        verdict(holder, std::slice::from_ref(one), VICTIM, "7.3").kind
    }

    #[test]
    fn kill_as_in_the_model_is_shown() {
        assert_eq!(kind(Holder::Kvm, &reaped()), VerdictKind::Shown);
        let skips = vec![Duration::from_secs(3); 10];
        let traced = Traced { starts: Vec::new(), ends: Vec::new(), skips, ..reaped().traced };
        let locked = Reaped {
            after: VICTIM,
            traced,
            gave_up: true,
            other_victims: 1,
            satisfied: false,
            ..reaped()
        };
        assert_eq!(kind(Holder::LockHeld, &locked), VerdictKind::Shown);
        assert_eq!(kind(Holder::Kvm, &locked), VerdictKind::NotShown);
        assert_eq!(kind(Holder::LockHeld, &reaped()), VerdictKind::NotShown);
    }

    #[test]
    fn each_difference_from_the_model_is_named() {
        let traced = reaped().traced;
        let untold = Traced { unmapped_bytes: VICTIM / 2, ..traced.clone() };
        let again = Traced { skips: vec![Duration::from_secs(2)], ..traced };
        for (one, named) in [
            (Reaped { after: VICTIM / 2, ..reaped() }, "share of 0.500"),
            (Reaped { traced: again, ..reaped() }, "2 attempts"),
            (Reaped { gave_up: true, ..reaped() }, "it gave up: true"),
            (Reaped { other_victims: 1, ..reaped() }, "1 other victims"),
            (Reaped { satisfied: false, ..reaped() }, "had it: false"),
            (Reaped { stopped: false, ..reaped() }, "did not wait"),
            (Reaped { kvm_before: 7, ..reaped() }, "mapped 7 pages before"),
            (Reaped { kvm_after: 1, ..reaped() }, "maps 1 pages after"),
            (Reaped { traced: untold, ..reaped() }, "was told of 33554432 bytes"),
        ] {
            let differences = one.differences(Holder::Kvm, VICTIM);
            assert_eq!(differences.len(), 1, "{differences:?}");
            assert!(differences[0].contains(named), "{differences:?}");
            assert_eq!(kind(Holder::Kvm, &one), VerdictKind::NotShown);
        }
    }
}
