// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::time::Duration;

use super::Load;
use crate::oom_reaper::scheme::Scheme;

/// Small pages of accounting: a chunk is reaped as a whole or not at all.
fn load(coverage: f64, duty: f64, chunks: u64) -> Load {
    Load { coverage, duty, chunks, chunk_pages: 1, victims: 100, ..Load::default() }
}

/// Checks a share against its closed form.
///
/// It is the mean of `draws` that are independent and lie between 0 and 1, so its standard deviation is at
/// most sqrt(p(1-p)/draws). Four of them are exceeded by one seed of 15,000.
fn check(load: Load, scheme: Scheme) {
    let expected = load.expected(scheme).expect("a closed form");
    let draws = match scheme {
        // All memory of a process or none.
        Scheme::SkipNotified | Scheme::BailOut => load.victims,
        Scheme::IntervalTreeChunks | Scheme::TryLockChunks => {
            load.victims * load.vmas * load.chunks
        }
        _ => load.victims * load.vmas,
    };
    let draws = f64::from(u32::try_from(draws).expect("few"));
    let deviation = (expected * (1.0 - expected) / draws).max(0.0).sqrt();
    let measured = load.measure(scheme, 11);
    let off = (measured.share() - expected).abs();
    let said = format!("{scheme}: {:.4} of {expected:.4}, {load:?}", measured.share());
    assert!(off <= 4.0 * deviation + 1e-9, "{said}");
    assert_eq!(measured.kills, load.victims, "{said}");
}

const ALL: [Scheme; 8] = [
    Scheme::SkipNotified,
    Scheme::BailOut,
    Scheme::DriverRange,
    Scheme::IntervalTree,
    Scheme::IntervalTreeChunks,
    Scheme::TryLock,
    Scheme::TryLockChunks,
    Scheme::Deferred,
];

#[test]
fn shares_agree_with_the_closed_forms() {
    for coverage in [0.0, 0.1, 0.5, 1.0] {
        for duty in [0.0, 0.5, 0.9] {
            for chunks in [1, 4] {
                // All of the memory is wanted; what is not reaped makes every process a victim.
                let load = Load { needed: 1.0, ..load(coverage, duty, chunks) };
                ALL.into_iter().for_each(|scheme| check(load, scheme));
            }
        }
    }
}

#[test]
fn long_holds_make_retries_worth_less() {
    let shares = [0, 400, 2_000].map(|hold| {
        let load = Load { hold: Duration::from_millis(hold), ..load(0.8, 0.7, 1) };
        check(load, Scheme::TryLock);
        check(load, Scheme::TryLockChunks);
        load.measure(Scheme::TryLock, 5).share()
    });
    assert!(shares.is_sorted_by(|more, less| more > less), "{shares:?}");
}

#[test]
fn one_attempt_has_the_simple_closed_form() {
    let load = Load { attempts: 1, ..load(0.6, 0.5, 1) };
    let of = |scheme| load.expected(scheme).expect("a closed form");
    assert!((of(Scheme::IntervalTree) - 0.4).abs() < 1e-9);
    assert!((of(Scheme::TryLock) - (1.0 - 0.6 * 0.5)).abs() < 1e-9);
    check(load, Scheme::TryLock);
    let ten = Load { attempts: 10, ..load };
    let expected = 1.0 - 0.6 * 0.5_f64.powi(10);
    assert!((ten.expected(Scheme::TryLock).expect("a form") - expected).abs() < 1e-9);
}

#[test]
fn forfeited_memory_costs_further_victims() {
    let load = Load { needed: 0.25, chunk_pages: 64, ..load(0.5, 0.9, 4) };
    let of = |scheme| load.measure(scheme, 3);
    let [bail, tree, chunks, deferred] = [
        of(Scheme::BailOut),
        of(Scheme::IntervalTree),
        of(Scheme::IntervalTreeChunks),
        of(Scheme::Deferred),
    ];
    assert_eq!((deferred.extra_victims, deferred.kills), (0, 25));
    assert!(chunks.extra_victims > 0 && chunks.extra_victims < tree.extra_victims);
    assert!(bail.extra_victims >= tree.extra_victims && bail.first_mib.is_none());
    // The reaper begins two seconds after the kill; what is deferred comes when the device is idle.
    assert!(tree.first_mib >= Some(load.delay) && deferred.first_mib >= Some(load.delay));
    assert!(deferred.freed_later > 0 && tree.freed_later == 0);
    assert!(deferred.took < chunks.took && chunks.took < tree.took);
}

#[test]
fn measurement_repeats_by_seed() {
    let load = load(0.5, 0.9, 4);
    assert_eq!(load.measure(Scheme::TryLock, 9), load.measure(Scheme::TryLock, 9));
    assert_ne!(load.measure(Scheme::TryLock, 9), load.measure(Scheme::TryLock, 10));
}
