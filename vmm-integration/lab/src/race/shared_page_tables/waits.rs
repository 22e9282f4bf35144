// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What faults, forks and punches waited for, and the scheme of the model that does the same.

use std::collections::BTreeMap;

use guest_agent::hugetlb::{Arrangement, Wait};

use super::figures::{float, name};
use super::loads::{ARRANGEMENTS, Load, Measured};
use crate::store::Findings;

/// The lock of the tree of VMAs, as the agent names it.
const TREE: &str = "i_mmap_rwsem";
/// The functions in which Linux looks for a page table to share.
const LOOKS: [&str; 2] = ["huge_pmd_share", "huge_pte_alloc"];
/// Rows of a note.
const MOST: usize = 12;

/// Waits by actor and lock: times, nanoseconds, the longest.
type Sums = BTreeMap<(String, String), (u64, u64, u64)>;

fn sums<'a>(waits: impl Iterator<Item = &'a Wait>) -> Sums {
    let mut sums = Sums::new();
    for wait in waits {
        let key = (wait.by.clone(), wait.lock.clone());
        let (times, ns, longest) = sums.entry(key).or_default();
        *times += wait.times;
        *ns += wait.nanoseconds;
        *longest = (*longest).max(wait.longest_ns);
    }
    sums
}

fn of(measured: &Measured, arrangement: Arrangement) -> impl Iterator<Item = &Wait> {
    measured.of(Load::Traced, arrangement).iter().flat_map(|report| &report.waits)
}

/// Adds what faults, forks and punches waited for, and the rest as notes.
pub(super) fn figures(measured: &Measured, findings: &mut Findings) {
    for arrangement in ARRANGEMENTS {
        let name = name(arrangement);
        let sums = sums(of(measured, arrangement));
        for ((by, lock), &(_, ns, _)) in &sums {
            if ["fault", "fork", "punch", "mmap"].contains(&by.as_str()) {
                let what = format!("{by}-waits-{}-{name}", lock.replace(' ', "-"));
                let meaning = format!("sum of waits of {by} in traced storms");
                findings.figure(&what, float(ns) / 1e6, "ms", &meaning);
            }
        }
        let mut rows: Vec<_> = sums.into_iter().collect();
        rows.sort_by_key(|(_, (_, ns, _))| std::cmp::Reverse(*ns));
        let row = |((by, lock), (times, ns, longest)): ((String, String), (u64, u64, u64))| {
            format!(
                "{by} for {lock} {times} times, {:.1} ms, at most {:.1} ms",
                float(ns) / 1e6,
                float(longest) / 1e6
            )
        };
        let rows: Vec<String> = rows.into_iter().take(MOST).map(row).collect();
        if !rows.is_empty() {
            findings.note(format!("Waits in traced storms, {name}: {}.", rows.join("; ")));
        }
    }
}

/// Compares what faults waited for with the schemes of the model.
pub(super) fn scheme(measured: &Measured) -> String {
    let waits: Vec<&Wait> =
        ARRANGEMENTS.into_iter().flat_map(|arrangement| of(measured, arrangement)).collect();
    let by_faults = |wait: &&&Wait| wait.by == "fault";
    let times = |lock: &str| -> u64 {
        let of_lock = |wait: &&&Wait| wait.lock == lock;
        waits.iter().filter(by_faults).filter(of_lock).map(|wait| wait.times).sum()
    };
    // Scheme `i-mmap-read` holds it over all of a fault.
    let beyond = |wait: &&&Wait| wait.lock == TREE && !LOOKS.contains(&wait.site.as_str());
    let beyond = waits.iter().filter(by_faults).filter(beyond).map(|wait| wait.times).sum::<u64>();
    let (vma, tree, inode) = (times("VMA lock"), times(TREE), times("inode rwsem"));
    let like = match (beyond, inode, vma) {
        (0, 0, 1..) => "as scheme vma-lock of the model",
        (0, 0, 0) => "which does not tell the schemes of the model apart",
        _ => "not as scheme vma-lock of the model",
    };
    format!(
        "faults waited {vma} times for a VMA lock, {tree} times for {TREE}, {beyond} of these beyond the \
         look for a page table to share, and {inode} times for the inode's rwsem, {like}"
    )
}

#[cfg(test)]
mod tests {
    use guest_agent::hugetlb::StormReport;

    use super::*;

    fn wait(by: &str, site: &str, lock: &str) -> Wait {
        Wait {
            by: by.into(),
            site: site.into(),
            how: "read".into(),
            lock: lock.into(),
            times: 2,
            nanoseconds: 3_000_000,
            longest_ns: 2_000_000,
        }
    }

    fn measured(waits: Vec<Wait>) -> Measured {
        let report = StormReport { waits, ..StormReport::default() };
        let mut measured = Measured::default();
        measured.reports.insert((Load::Traced, Arrangement::Shared), vec![report]);
        measured
    }

    #[test]
    fn scheme_is_told_from_the_locks_of_faults() {
        let vma = wait("fault", "hugetlb_fault", "VMA lock");
        let look = wait("fault", "huge_pmd_share", TREE);
        let linux = measured(vec![vma.clone(), look.clone(), wait("fork", "dup_mmap", TREE)]);
        let text = scheme(&linux);
        assert!(text.ends_with("as scheme vma-lock of the model"), "{text}");
        assert!(text.contains("2 times for i_mmap_rwsem, 0 of these beyond"), "{text}");
        let old = measured(vec![vma, look, wait("fault", "hugetlb_fault", TREE)]);
        assert!(scheme(&old).contains("2 of these beyond"), "{}", scheme(&old));
        assert!(scheme(&old).contains(", not as scheme vma-lock"), "{}", scheme(&old));
        assert!(scheme(&measured(Vec::new())).contains("does not tell"));
    }

    #[test]
    fn waits_are_summed_by_actor_and_lock() {
        let fork = wait("fork", "dup_mmap", TREE);
        let mut findings = Findings::default();
        figures(&measured(vec![fork.clone(), fork]), &mut findings);
        assert_eq!(findings.figures["fork-waits-i_mmap_rwsem-shared"].value, 6.0);
        let note = "fork for i_mmap_rwsem 4 times, 6.0 ms, at most 2.0 ms";
        assert!(findings.notes[0].contains(note), "{:?}", findings.notes);
    }
}
