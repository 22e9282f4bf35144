// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What came of the cycles of a case: figures and the verdict.

use anyhow::Result;

use super::numa::{Numa, Outcome};
use super::settings::Settings;
use crate::store::{Findings, Verdict, VerdictKind};

/// How many cycles were done, and what came of them.
pub(super) struct Cycles {
    pub(super) done: u64,
    pub(super) what: &'static str,
    pub(super) outcome: Outcome,
}

/// Looks at the watermarks of [`super::numa::NODE`].
#[derive(Default)]
pub(super) struct Looks {
    all: u64,
    between: u64,
}

impl Looks {
    pub(super) fn look(&mut self, numa: &Numa) -> Result<()> {
        self.all += 1;
        self.between += u64::from(numa.is_between()?);
        Ok(())
    }

    pub(super) fn figures(&self, findings: &mut Findings) {
        findings.count("looks", self.all, "", "looks at the watermarks");
        let what = "looks at which the node's free memory lay between min and low";
        findings.count("looks-between-watermarks", self.between, "", what);
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
pub(super) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// Adds the counts.
pub(super) fn counts(findings: &mut Findings, cycles: &Cycles) {
    let Cycles { done, what, outcome } = cycles;
    let Outcome { placement, complaints, oom_kills, direct_reclaims, .. } = outcome;
    let mut count = |name: &str, times: u64, what: &str| findings.count(name, times, "", what);
    count("cycles", *done, what);
    count("oom-kills", *oom_kills, "OOM kills that the kernel counts");
    for (constraint, times) in &complaints.oom {
        let what = format!("of those that its log describes, with constraint {constraint}");
        count(&format!("oom-kills-{constraint}"), *times, &what);
    }
    count("failed-allocations", complaints.failed_allocations, "warnings of failed allocations");
    count("soft-lockups", complaints.soft_lockups, "reports of the soft lockup detector");
    count("hung-tasks", complaints.hung_tasks, "reports of the hung task detector");
    count("rcu-stalls", complaints.rcu_stalls, "reports of RCU's stall detector");
    count("other-complaints", complaints.others, "other lines with WARNING, BUG or Oops");
    count("direct-reclaims", *direct_reclaims, "allocations that reclaimed by themselves");
    findings.count("pages", placement.pages(), "pages", "faulted in by all tasks");
    findings.count("rounds", placement.rounds(), "", "times that a task used all of its memory");
    let stall = ms(placement.longest_stall_ms() * 1000);
    findings.figure("longest-stall", stall, "ms", "the longest time of a task without a page");
    let time = ms(placement.elapsed_ms);
    findings.figure("time", time, "s", "by the guest's clock");
    for (how, times) in placement.tasks.iter().flat_map(|task| &task.ends) {
        findings.note(format!("A task ended {times} times: {how}."));
    }
    for line in &complaints.lines {
        findings.note(format!("The log says {line:?}"));
    }
}

/// What was seen, and in how many cycles.
pub(super) fn verdict(cycles: &Cycles, settings: &Settings, release: &str) -> Verdict {
    let Cycles { done, what, outcome } = cycles;
    let Outcome { placement, complaints, oom_kills, endless, .. } = outcome;
    let bound_ms = settings.stall * 1000;
    let stuck = placement.tasks.iter().filter(|task| task.longest_stall_ms >= bound_ms).count();
    let seen = [
        ("OOM kills", *oom_kills.max(&complaints.oom_kills())),
        ("failed allocations", complaints.failed_allocations),
        ("tasks without progress", (stuck as u64).max(u64::from(*endless))),
        ("soft lockups", complaints.soft_lockups),
        ("hung tasks", complaints.hung_tasks),
        ("RCU stalls", complaints.rcu_stalls),
        ("other complaints", complaints.others),
    ];
    let (some, none): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(_, times)| *times > 0);
    let mut parts: Vec<String> =
        some.iter().map(|(name, times)| format!("{name} seen {times} times")).collect();
    if *oom_kills > 0 {
        let constrained = complaints.constrained();
        parts.push(format!("{constrained} of the OOM kills constrained to nodes"));
    }
    let none: Vec<&str> = none.iter().map(|(name, _)| *name).collect();
    parts.push(format!("not seen: {}", none.join(", ")));
    let text = format!(
        "Linux {release}: in {done} {what} and {} pages faulted in: {}",
        placement.pages(),
        parts.join("; ")
    );
    let kind = if some.is_empty() { VerdictKind::NotShown } else { VerdictKind::Shown };
    Verdict { kind, text }
}

#[cfg(test)]
mod tests {
    use guest_agent::placement::{PlacementReport, TaskReport};

    use super::*;
    use crate::parameters::{Assignments, Length, Parameters};
    use crate::race::placement::kernel_log::Complaints;

    fn settings(set: &[&str]) -> Settings {
        let set = set.iter().map(|&set| set.to_owned()).collect::<Vec<_>>();
        Settings::read(Length::Quick, &Assignments::parse(&set).unwrap()).unwrap()
    }

    fn cycles(log: &str, oom_kills: u64, stall_ms: u64) -> Cycles {
        let task = TaskReport { pages: 7, longest_stall_ms: stall_ms, ..TaskReport::default() };
        let placement = PlacementReport { tasks: vec![task], ..PlacementReport::default() };
        let complaints = Complaints::of(log);
        let outcome =
            Outcome { placement, complaints, oom_kills, direct_reclaims: 0, endless: false };
        Cycles { done: 30, what: "changes", outcome }
    }

    #[test]
    fn verdict_names_what_was_seen_and_what_not() {
        let settings = settings(&["stall=10"]);
        let quiet = verdict(&cycles("", 0, 9_999), &settings, "7.3");
        assert_eq!(quiet.kind, VerdictKind::NotShown);
        assert!(quiet.text.starts_with("Linux 7.3: in 30 changes and 7 pages"), "{}", quiet.text);
        assert!(quiet.text.contains("not seen: OOM kills, failed allocations, tasks"));
        let log = "oom-kill:constraint=CONSTRAINT_CPUSET,a\noom-kill:constraint=CONSTRAINT_NONE,b";
        let killed = verdict(&cycles(log, 3, 0), &settings, "7.3");
        assert_eq!(killed.kind, VerdictKind::Shown);
        let expected =
            "OOM kills seen 3 times; 1 of the OOM kills constrained to nodes; not seen: f";
        assert!(killed.text.contains(expected), "{}", killed.text);
        let stuck = verdict(&cycles("", 0, 10_000), &settings, "7.3");
        assert_eq!(stuck.kind, VerdictKind::Shown);
        assert!(stuck.text.contains("tasks without progress seen 1 times"), "{}", stuck.text);
    }
}
