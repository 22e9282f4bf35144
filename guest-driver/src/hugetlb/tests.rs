// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::time::Duration;

use super::measure::{Load, run};
use super::*;

fn config(scheme: Scheme, flaw: Option<Flaw>) -> Config {
    Config { scheme, flaw, pieces: 2, entries: 2, spaces: 3, locks: Locks::Watched }
}

/// A file that address spaces 0 and 1 map, with `index` faulted in by both.
fn shared(config: Config, index: usize) -> (Hugetlb, Task) {
    let hugetlb = Hugetlb::new(config);
    let task = hugetlb.task("the task");
    for space in [0, 1] {
        hugetlb.mmap(&task, space);
        assert_eq!(hugetlb.fault(&task, space, index), Ok(Fault::Mapped));
    }
    (hugetlb, task)
}

/// Entries that map a folio, in all page tables.
fn mapped(hugetlb: &Hugetlb) -> usize {
    let entries =
        |table| hugetlb.tables.with(table, |state| state.entries.iter().flatten().count());
    hugetlb.tables.all().filter_map(entries).sum()
}

#[test]
fn processes_share_a_page_table_until_one_leaves() {
    for &scheme in Scheme::ALL {
        let (hugetlb, task) = shared(config(scheme, None), 1);
        assert_eq!((hugetlb.page_tables(), mapped(&hugetlb)), (1, 1), "{scheme}");
        hugetlb.munmap(&task, 0).expect("the first leaves");
        assert_eq!((hugetlb.page_tables(), mapped(&hugetlb)), (1, 1), "{scheme}");
        hugetlb.munmap(&task, 1).expect("the last leaves");
        assert_eq!((hugetlb.page_tables(), mapped(&hugetlb)), (0, 0), "{scheme}");
        assert_eq!(hugetlb.evict(&task), Ok(true));
        hugetlb.check_at_rest().expect("all is free");
    }
}

#[test]
fn truncation_unmaps_everywhere_and_stays() {
    for &scheme in Scheme::ALL {
        let (hugetlb, task) = shared(config(scheme, None), 3);
        assert_eq!(hugetlb.fault(&task, 0, 0), Ok(Fault::Mapped));
        hugetlb.truncate(&task, 2).expect("it truncates");
        assert_eq!(mapped(&hugetlb), 1, "{scheme}");
        assert_eq!(hugetlb.fault(&task, 1, 3), Ok(Fault::Sigbus), "{scheme}");
        assert_eq!(hugetlb.fault(&task, 1, 0), Ok(Fault::Mapped), "{scheme}");
        hugetlb.check_at_rest().expect("nothing is beyond the end");
    }
}

#[test]
fn punched_page_can_be_faulted_in_again() {
    for &scheme in Scheme::ALL {
        let (hugetlb, task) = shared(config(scheme, None), 1);
        hugetlb.punch(&task, 0..2).expect("it punches");
        assert_eq!((mapped(&hugetlb), hugetlb.inode.pool.lock().len()), (0, 4), "{scheme}");
        assert_eq!(hugetlb.fault(&task, 0, 1), Ok(Fault::Mapped), "{scheme}");
        hugetlb.check_at_rest().expect("it is mapped once");
    }
}

#[test]
fn forked_child_shares_the_page_tables() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, None), 0);
    hugetlb.fork(&task, 0, 2).expect("it forks");
    assert!(hugetlb.spaces[2].pud(0).is_some() && hugetlb.spaces[2].pud(1).is_none());
    assert_eq!(hugetlb.page_tables(), 1);
    hugetlb.check_at_rest().expect("three have it");
}

#[test]
fn split_vma_has_page_tables_of_its_own() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, None), 0);
    hugetlb.split(&task, 0).expect("it splits");
    assert_eq!(hugetlb.fault(&task, 0, 0), Ok(Fault::Mapped));
    assert_eq!((hugetlb.page_tables(), mapped(&hugetlb)), (2, 2));
    // Nor do others share them.
    hugetlb.munmap(&task, 1).expect("it leaves");
    hugetlb.mmap(&task, 2);
    assert_eq!(hugetlb.fault(&task, 2, 0), Ok(Fault::Mapped));
    assert_eq!(hugetlb.page_tables(), 2);
    hugetlb.check_at_rest().expect("each has one");
}

#[test]
fn split_that_keeps_sharing_is_noticed() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, Some(Flaw::SplitKeepsSharing)), 0);
    let broken = hugetlb.split(&task, 0).expect_err("it shares");
    assert_eq!(broken.rule, Rule::OnlyWholeVmasShare);
}

#[test]
fn lock_of_a_reused_page_is_noticed() {
    let (hugetlb, task) = shared(config(Scheme::CheckAgain, None), 0);
    let table = hugetlb.spaces[0].pud(0).expect("it is installed");
    drop(hugetlb.tables.lock(table, task.0).expect("it is a page table"));
    hugetlb.munmap(&task, 0).expect("it leaves");
    hugetlb.munmap(&task, 1).expect("it leaves");
    for reused in [false, true] {
        let other = reused.then(|| hugetlb.tables.alloc_other());
        let broken = hugetlb.tables.lock(table, task.0).expect_err("it is gone");
        assert_eq!(broken.rule, Rule::LockOfALivePageTable, "{other:?}");
    }
}

#[test]
fn speculative_reference_is_no_share() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, None), 0);
    hugetlb.munmap(&task, 1).expect("one is left");
    let table = hugetlb.spaces[0].pud(0).expect("it is installed");
    assert!(hugetlb.tables.try_get(table.frame));
    hugetlb.punch(&task, 0..1).expect("the entry is cleared");
    assert_eq!(hugetlb.spaces[0].pud(0), Some(table));
    hugetlb.tables.put(table.frame).expect("it stays in use");
    hugetlb.check_at_rest().expect("one has it");
}

#[test]
fn reference_that_counts_as_share_is_noticed() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, Some(Flaw::CountsReferences)), 0);
    hugetlb.munmap(&task, 1).expect("one is left");
    let table = hugetlb.spaces[0].pud(0).expect("it is installed");
    assert!(hugetlb.tables.try_get(table.frame));
    let broken = hugetlb.punch(&task, 0..1).expect_err("it looks shared");
    assert_eq!(broken.rule, Rule::ShareCountMatchesUsers);
}

#[test]
fn gup_fast_finds_what_is_mapped() {
    let (hugetlb, task) = shared(config(Scheme::VmaLock, None), 0);
    assert_eq!(hugetlb.gup_fast(&task, 0, 0), Ok(true));
    assert_eq!(hugetlb.gup_fast(&task, 0, 1), Ok(false));
    assert_eq!(hugetlb.gup_fast(&task, 0, 2), Ok(false));
}

#[test]
fn real_threads_fault_and_fork_in_every_sound_scheme() {
    for &scheme in Scheme::SOUND {
        let load = Load { faulters: 2, forkers: 1, pieces: 2, entries: 4, ..Load::of(scheme) };
        let rates = run(load, Duration::from_millis(20)).expect("no rule is broken");
        assert!(rates.faults > 0 && rates.forks > 0, "{scheme}: {rates:?}");
        assert!(rates.faults_per_second() > 0.0 && rates.forks_per_second() > 0.0);
    }
}
