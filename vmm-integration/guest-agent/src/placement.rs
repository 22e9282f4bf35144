// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host asks of tasks that fault memory in while a cpuset and memory policies say where
//! from, and what came of it.
//!
//! Each task is a process of its own, which the OOM killer may kill. A killed task starts again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Tasks, and the cpuset that they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementPlan {
    /// Of every choice that a task makes. The order in which tasks run is the kernel's.
    pub seed: u64,
    /// The tasks.
    pub tasks: Vec<PlacedTask>,
    /// What their `cpuset.mems` is, one after the other; none: they have no cpuset of their own.
    pub mems: Vec<String>,
    /// Ends after so many changes of it; 0: the host stops it, or no task starts again.
    pub flips: u64,
    /// Pause between two changes in microseconds.
    pub pause_us: u64,
    /// Whether a task that is done or killed starts again.
    pub again: bool,
}

/// A task: it maps memory once, then touches every page of it and drops all of them, over and over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacedTask {
    /// Where its pages come from.
    pub policy: Policy,
    /// What has the policy.
    pub scope: Scope,
    /// Nodes of the policy.
    pub nodes: Vec<u32>,
    /// Whether a change of the cpuset leaves the nodes alone (`MPOL_F_STATIC_NODES`).
    pub fixed: bool,
    /// Size of its memory in bytes, a multiple of the page size.
    pub bytes: u64,
    /// Whether it touches only a page of each 2 MiB, and maps the memory again in each round: for
    /// each such page the kernel needs a page table, which `ZONE_MOVABLE` cannot hold.
    pub sparse: bool,
    /// How often it does so; 0: until it is stopped.
    pub rounds: u64,
    /// Longest rest between two rounds in milliseconds; the seed says how much of it.
    pub rest_ms: u64,
}

/// A mode of a memory policy: `set_mempolicy(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// `MPOL_DEFAULT`.
    #[default]
    Default,
    /// `MPOL_BIND`.
    Bind,
    /// `MPOL_PREFERRED`.
    Preferred,
    /// `MPOL_INTERLEAVE`.
    Interleave,
}

/// What a policy belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The task: `set_mempolicy(2)`.
    #[default]
    Task,
    /// The mapping: `mbind(2)`.
    Mapping,
}

/// Which cgroups the cpuset is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// Version 1: pages stay where they are when `cpuset.mems` changes.
    V1,
    /// Version 2: a change of `cpuset.mems` migrates pages.
    V2,
}

impl std::fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "cgroup v1, which migrates no page",
            Self::V2 => "cgroup v2, which migrates pages",
        })
    }
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// Whether a task runs, or the cpuset changes.
    pub running: bool,
    /// Since it began, in milliseconds, by the guest's clock.
    pub elapsed_ms: u64,
    /// Which cgroups the cpuset is one of, if the tasks have one.
    pub hierarchy: Option<Hierarchy>,
    /// Changes of `cpuset.mems`.
    pub flips: u64,
    /// Changes that failed, by the name of the error.
    pub failed_flips: BTreeMap<String, u64>,
    /// The longest change in microseconds.
    pub longest_flip_us: u64,
    /// What came of each task, in the plan's order.
    pub tasks: Vec<TaskReport>,
}

/// What came of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Pages that it faulted in.
    pub pages: u64,
    /// Rounds that it finished.
    pub rounds: u64,
    /// How often it ended how: [`DONE`], [`KILLED`], or another name.
    pub ends: BTreeMap<String, u64>,
    /// The longest time in which it faulted no page in although it did not rest, in milliseconds. Time
    /// in which the whole guest did not run counts little.
    pub longest_stall_ms: u64,
    /// Such a time that has not ended.
    pub stalled_ms: u64,
}

/// [`TaskReport::ends`]: it did all rounds.
pub const DONE: &str = "done";
/// [`TaskReport::ends`]: the OOM killer's signal ended it.
pub const KILLED: &str = "killed";

impl PlacementReport {
    /// Pages that all tasks faulted in.
    pub fn pages(&self) -> u64 {
        self.tasks.iter().map(|task| task.pages).sum()
    }

    /// Rounds that all tasks finished.
    pub fn rounds(&self) -> u64 {
        self.tasks.iter().map(|task| task.rounds).sum()
    }

    /// How often tasks ended so.
    pub fn ends(&self, how: &str) -> u64 {
        self.tasks.iter().filter_map(|task| task.ends.get(how)).sum()
    }

    /// The longest time in which a task made no progress, in milliseconds.
    pub fn longest_stall_ms(&self) -> u64 {
        self.tasks.iter().map(|task| task.longest_stall_ms).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_a_report_are_over_all_tasks() {
        let task = |pages, stall, killed| TaskReport {
            pages,
            rounds: 2,
            ends: BTreeMap::from([(KILLED.to_owned(), killed)]),
            longest_stall_ms: stall,
            stalled_ms: 0,
        };
        let tasks = vec![task(10, 5, 1), task(20, 70, 2), TaskReport::default()];
        let report = PlacementReport { tasks, ..PlacementReport::default() };
        assert_eq!((report.pages(), report.rounds()), (30, 4));
        assert_eq!((report.ends(KILLED), report.ends(DONE)), (3, 0));
        assert_eq!(report.longest_stall_ms(), 70);
    }

    #[test]
    fn plan_on_the_wire_is_short_and_comes_back() {
        let plan = PlacementPlan {
            tasks: vec![PlacedTask { policy: Policy::Bind, nodes: vec![1], ..Default::default() }],
            mems: vec!["0".into(), "1".into()],
            ..PlacementPlan::default()
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<PlacementPlan>(&text).unwrap(), plan);
        assert_eq!(serde_json::from_str::<PlacementPlan>("{}").unwrap(), Default::default());
    }
}
