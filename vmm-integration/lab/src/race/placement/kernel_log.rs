// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a kernel's log says about allocations that failed and tasks that got stuck.

use std::collections::BTreeMap;

/// Complaints by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::race) struct Complaints {
    /// OOM kills by `enum oom_constraint`: `none`, `cpuset`, `memory-policy`, `memcg`.
    pub(in crate::race) oom: BTreeMap<String, u64>,
    /// Allocations that failed with a warning (`warn_alloc`).
    pub(in crate::race) failed_allocations: u64,
    /// Tasks that the hung task detector named.
    pub(in crate::race) hung_tasks: u64,
    /// Reports of the soft lockup detector.
    pub(in crate::race) soft_lockups: u64,
    /// Reports of RCU's stall detector.
    pub(in crate::race) rcu_stalls: u64,
    /// Other lines with `WARNING:`, `BUG:` or `Oops:`.
    pub(in crate::race) others: u64,
    /// The lines that were counted, each without its time.
    pub(in crate::race) lines: Vec<String>,
}

/// Lines that are kept.
const MOST_LINES: usize = 12;

impl Complaints {
    /// Counts the complaints of a log.
    pub(in crate::race) fn of(log: &str) -> Self {
        let mut complaints = Self::default();
        for line in log.lines() {
            // `[   12.345678] TEXT`; a line that another tore apart has no time.
            let text = line.split_once("] ").map_or(line, |(_, text)| text).trim();
            let count = if let Some((_, rest)) = text.split_once("oom-kill:constraint=CONSTRAINT_")
            {
                let name = rest.split(',').next().unwrap_or_default();
                complaints.oom.entry(name.to_lowercase().replace('_', "-")).or_default()
            } else if text.contains("page allocation failure:") {
                &mut complaints.failed_allocations
            } else if text.contains("soft lockup") {
                &mut complaints.soft_lockups
            } else if text.contains("blocked for more than") {
                &mut complaints.hung_tasks
            } else if text.contains("self-detected stall") || text.contains("detected stalls on") {
                &mut complaints.rcu_stalls
            } else if ["WARNING:", "BUG:", "Oops:"].iter().any(|bad| text.contains(bad)) {
                &mut complaints.others
            } else {
                continue;
            };
            *count += 1;
            if complaints.lines.len() < MOST_LINES {
                complaints.lines.push(text.to_owned());
            }
        }
        complaints
    }

    /// OOM kills that the log describes. The kernel limits their rate, and counts all in
    /// `/proc/vmstat`.
    pub(in crate::race) fn oom_kills(&self) -> u64 {
        self.oom.values().sum()
    }

    /// OOM kills where a cpuset or a policy kept the allocation from other nodes.
    pub(in crate::race) fn constrained(&self) -> u64 {
        ["cpuset", "memory-policy"].iter().filter_map(|name| self.oom.get(*name)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_counted_by_kind() {
        let log = "\
[    1.000000] Linux version 7.3.4
[    9.1] guest-agent invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE), order=0
[    9.100001] oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=1,cpuset=/,mems_allowed=0-1
[    9.2] oom-kill:constraint=CONSTRAINT_CPUSET,nodemask=(null),cpuset=placement,mems_allowed=1
[    9.3] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0-1
[    9.4] guest-agent: page allocation failure: order:0, mode:0x140cca, nodemask=1
[   40.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [placed-1:99]
[  140.0] INFO: task placed-1:99 blocked for more than 120 seconds.
[  141.0] rcu: INFO: rcu_preempt self-detected stall on CPU
[  142.0] WARNING: CPU: 0 PID: 1 at mm/page_alloc.c:1
[  143.0] BUG: Bad page state in process placed-1
";
        let complaints = Complaints::of(log);
        let oom = [("cpuset", 1), ("memory-policy", 1), ("none", 1)];
        assert_eq!(complaints.oom, BTreeMap::from(oom.map(|(name, times)| (name.into(), times))));
        assert_eq!((complaints.oom_kills(), complaints.constrained()), (3, 2));
        let Complaints { failed_allocations, hung_tasks, soft_lockups, rcu_stalls, others, .. } =
            complaints;
        assert_eq!(
            (failed_allocations, hung_tasks, soft_lockups, rcu_stalls, others),
            (1, 1, 1, 1, 2)
        );
        assert_eq!(complaints.lines.len(), 9);
        assert!(complaints.lines[1].starts_with("oom-kill:constraint=CONSTRAINT_CPUSET"));
        assert_eq!(Complaints::of("[    1.0] all is well\n"), Complaints::default());
    }
}
