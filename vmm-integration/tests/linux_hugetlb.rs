// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes of a real guest that map one file of hugetlbfs: they share a page table where they may,
//! and each check of a storm notices the fault that is planted for it.

use std::collections::BTreeMap;

use anyhow::Result;
use guest_agent::hugetlb::{Arrangement, Role, Sabotage, StormPlan, StormReport};
use vmm_integration::vmm::qemu::{self, GuestConfig, LinuxGuest};

const PAGES: u32 = 16;

/// A guest whose huge pages are all surplus.
fn boot() -> Result<LinuxGuest> {
    // Emulated, a processor that says that it clears bytes fast takes ten times as long for a page.
    let qemu_args = ["-cpu", "max,-erms,-fsrm"].map(str::to_owned).to_vec();
    let config = GuestConfig { qemu_args, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&qemu::available()?, config)?;
    guest.agent().write_file("/proc/sys/vm/nr_overcommit_hugepages", "128")?;
    Ok(guest)
}

fn storm(guest: &LinuxGuest, plan: &StormPlan) -> Result<StormReport> {
    let report = guest.agent().storm(plan)?;
    println!("{report:#?}");
    Ok(report)
}

fn all(arrangement: Arrangement) -> StormPlan {
    let roles = [
        (Role::Mapper, 1),
        (Role::Forker, 1),
        (Role::Writer, 2),
        (Role::Puncher, 1),
        (Role::Splitter, 1),
        (Role::Private, 1),
    ];
    StormPlan { arrangement, pages: PAGES, roles: BTreeMap::from(roles), ..StormPlan::default() }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn storm_finds_each_planted_fault_and_no_other() {
    let guest = boot().unwrap();
    for arrangement in [Arrangement::Shared, Arrangement::Apart] {
        let report = storm(&guest, &StormPlan { trace: true, ..all(arrangement) }).unwrap();
        assert_eq!(report.faults_found(arrangement), Vec::<String>::new());
        for role in all(arrangement).roles.into_keys() {
            assert!(report.of(role).rounds > 0, "{role:?}");
        }
        let writer = report.of(Role::Writer);
        assert!(writer.zeros > 0 && writer.kept > 0 && !writer.latencies.is_empty());
    }
    for (plan, expected) in Sabotage::planted() {
        let found = storm(&guest, &plan).unwrap().faults_found(plan.arrangement).join("\n");
        assert!(found.contains(expected), "{:?} was not noticed: {found:?}", plan.sabotage);
    }
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}
