// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is counted is what the code did, and the same each time.

use explore::cost::{What, count_all, table};
use guest_driver::page_alloc::ZonelistUpdate;
use guest_driver::placement::Scheme;
use guest_driver::sync::cost::{Cost, cost_of};
use guest_driver::sync::{AtomicU64, Lock, Ordering, fence};

/// What shuttle counts of `code`.
fn counted(code: impl Fn() + Send + Sync + 'static) -> Cost {
    let (sender, counted) = std::sync::mpsc::sync_channel(1);
    shuttle::check_dfs(move || sender.send(cost_of(&code).1).expect("the caller waits"), Some(1));
    counted.recv().expect("it ran")
}

#[test]
fn operations_are_counted_by_kind_and_ordering() {
    let word = AtomicU64::new(1);
    let cost = counted(move || {
        word.load(Ordering::Relaxed);
        word.load(Ordering::Acquire);
        word.store(2, Ordering::Release);
        word.fetch_add(1, Ordering::AcqRel);
        let _ = word.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed);
    });
    let expected =
        Cost { loads: 2, stores: 1, rmws: 2, acquires: 2, releases: 2, ..Cost::default() };
    assert_eq!(cost, expected);
}

#[test]
fn full_barriers_and_locks_are_counted() {
    let (word, lock) = (AtomicU64::new(1), Lock::new(()));
    let cost = counted(move || {
        word.store(2, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        fence(Ordering::Acquire);
        drop(lock.lock());
    });
    let expected =
        Cost { stores: 1, acquires: 2, releases: 2, full_barriers: 2, locks: 1, ..Cost::default() };
    assert_eq!(cost, expected);
}

#[test]
fn walks_are_counted_exactly() {
    let all = count_all().expect("there is memory");
    assert_eq!(all, count_all().expect("there is memory"), "the same each time");
    let of = |scheme: &str, policy: &str, what| {
        let found = all.iter().find(|counted| {
            counted.scheme == scheme && counted.policy == policy && counted.what == what
        });
        found.map(|counted| counted.cost).expect("it is counted")
    };
    let fast = of("anywhere", "none", What::FastWalk);
    assert_eq!(fast.locks, 1, "of the CPU's list");
    for &scheme in Scheme::ALL {
        for policy in ["none", "bind"] {
            let [own, far, slow, update] =
                [What::FastWalk, What::FarWalk, What::SlowWalk, What::Update]
                    .map(|what| of(scheme.name(), policy, what));
            assert!(own.loads >= fast.loads && far.loads >= own.loads, "{scheme}: {own:?} {far:?}");
            assert!(slow.loads >= own.loads, "{scheme}: {slow:?}");
            assert!(update.stores + update.rmws > 0, "{scheme}: {update:?}");
        }
    }
    assert_eq!(table(&all).lines().count(), all.len() + 1);
}

/// What the proposals of 2017 pay for not looking again, and Linux does not.
#[test]
fn sequence_count_costs_the_fast_walk_no_lock() {
    let all = count_all().expect("there is memory");
    let of = |scheme: Scheme| {
        let fast = all.iter().find(|counted| {
            counted.scheme == scheme.name()
                && counted.policy == "none"
                && counted.what == What::FastWalk
        });
        fast.map(|counted| counted.cost).expect("it is counted")
    };
    assert_eq!(of(Scheme::CheckAtRetry).rmws, 0);
    assert!(of(Scheme::CountedCopy).rmws > 0);
}

/// An update of zonelists is paid for in the slow path and by the writer. A read section of RCU is counted in
/// the model; Linux's costs nothing.
#[test]
fn fast_walk_pays_nothing_for_zonelist_updates() {
    let all = count_all().expect("there is memory");
    let of = |update: ZonelistUpdate, what| {
        let found = all.iter().find(|counted| {
            (counted.model, &*counted.scheme, counted.what) == ("zonelists", update.name(), what)
        });
        found.map(|counted| counted.cost).expect("it is counted")
    };
    let plain = of(ZonelistUpdate::Overwrite, What::FastWalk);
    assert_eq!((plain.rmws, plain.acquires, plain.full_barriers), (0, 0, 0));
    for &update in ZonelistUpdate::ALL.iter().filter(|&&update| update != ZonelistUpdate::Rcu) {
        assert_eq!(of(update, What::FastWalk), plain, "{update}");
    }
    assert_eq!(of(ZonelistUpdate::Rcu, What::FastWalk).rmws, 2);
    let slow = |update| of(update, What::SlowWalk).loads;
    // The count before the walk, and before the try.
    assert_eq!(slow(ZonelistUpdate::SequenceCount), slow(ZonelistUpdate::Overwrite) + 2);
}
