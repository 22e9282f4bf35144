// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A day of hosts: the policy harms no guest, whatever is wrong with some of them.

use std::time::Duration;

use balloon_policy::Rules;
use balloon_simulation::fleet::{Compared, compare, live, sized};
use balloon_simulation::guest::Memory;
use balloon_simulation::guest::counted::Counted;
use balloon_simulation::guest::paged::Paged;
use balloon_simulation::host::HostConfig;
use balloon_simulation::trace::Events;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn config() -> HostConfig {
    HostConfig {
        guests: 25,
        sizes: vec![2 << 30, 4 << 30, 8 << 30],
        overcommit_percent: 140,
        rules: Some(Rules::default()),
        seed: 5,
        events: Events::default(),
        faulty_one_in: 0,
        policy_dies: false,
        deflates_on_oom: true,
    }
}

/// The same guests on three kinds of hosts.
fn compared<M: Memory>(config: &HostConfig, time: Duration) -> Compared {
    compare::<M>(sized::<M>(1, config, time, &|| ()), 1, config, time, &|| ())
}

fn harms_no_guest(compared: &Compared) {
    let Compared { sized, reporting, policy, .. } = compared;
    assert!(reporting.lost_vms > 0, "the hosts have enough without a policy: {reporting:?}");
    assert_eq!(policy.lost_vms, 0, "{policy:?}");
    assert!(policy.guest_ooms <= sized.guest_ooms, "{policy:?}, {sized:?}");
    assert_eq!(policy.below_working_set, 0, "{policy:?}");
    assert!(policy.moves > 0);
    assert!(policy.host_bytes * 130 < sized.host_bytes * 100);
}

#[test]
fn policy_harms_no_guest_in_a_day() {
    let compared = compared::<Counted>(&config(), DAY);
    harms_no_guest(&compared);
    assert_eq!(compared.policy.oscillations, 0);
}

#[test]
fn policy_harms_no_guest_beside_faulty_ones() {
    let config = HostConfig { faulty_one_in: 4, seed: 6, ..config() };
    harms_no_guest(&compared::<Counted>(&config, DAY));
}

#[test]
fn policy_harms_no_guest_made_of_pages() {
    // Small ones, with a reserve to match.
    let rules = Rules::from_toml("[guest]\nreserve = '96M'").expect("rules");
    let sizes = vec![2 << 30];
    let config = HostConfig { guests: 6, sizes, rules: Some(rules), seed: 7, ..config() };
    let time = Duration::from_secs(2 * 3600);
    harms_no_guest(&compared::<Paged>(&config, time));
}

/// A leak ends at the OOM killer, as it does in a guest that has all of its memory.
#[test]
fn policy_does_not_make_a_leak_worse() {
    let config = HostConfig { events: Events { leaks_one_in: 4 }, seed: 8, ..config() };
    let compared = compared::<Counted>(&config, DAY);
    assert!(compared.sized.guest_ooms > 0);
    harms_no_guest(&compared);
}

/// Each guest is back at its base target, and the host is as one without a policy for that hour.
#[test]
fn policy_that_dies_leaves_a_host_without_one() {
    let config = HostConfig { policy_dies: true, ..config() };
    let dies = live::<Counted>(1, &config, DAY, &|| ());
    let without = live::<Counted>(1, &HostConfig { rules: None, ..config }, DAY, &|| ());
    assert_eq!((dies.guest_ooms, dies.oscillations), (0, 0), "{dies:?}");
    assert!(dies.lost_vms < without.lost_vms / 10, "{dies:?}, {without:?}");
}

/// Why the policy asks for it.
#[test]
fn guests_that_do_not_deflate_run_out_of_memory() {
    let config = HostConfig { deflates_on_oom: false, ..config() };
    let outcome = live::<Counted>(1, &config, DAY, &|| ());
    assert!(outcome.guest_ooms > 0, "{outcome:?}");
}
