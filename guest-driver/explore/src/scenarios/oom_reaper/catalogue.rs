// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name.

use super::invariant::Holds;
use super::setting::{Mirror, Mistake, Scenario, Setting};
use crate::{Configuration, Kind, Notes};
use guest_driver::address_space::NotifyFlaw;
use guest_driver::oom_reaper::{DeviceFlaw, Flaw, KvmFlaw, Scheme};

type Named = Configuration<Setting, Holds>;

const ALLOCATION: Scenario = Scenario {
    name: "allocation",
    mirrors: &[Mirror::Allocates],
    exits: false,
    maps: false,
    free: 0,
};
const FLUSH: Scenario = Scenario { name: "flush", mirrors: &[Mirror::Flushes], ..ALLOCATION };
const TWO_LOCKS: Scenario =
    Scenario { name: "two-locks-away", mirrors: &[Mirror::Waits], ..ALLOCATION };
const KVM: Scenario = Scenario { name: "kvm", mirrors: &[Mirror::Kvm], free: 1, ..ALLOCATION };
const PINS: Scenario = Scenario { name: "pins", mirrors: &[Mirror::Pins], ..ALLOCATION };
const PAIR: Scenario =
    Scenario { name: "pair", mirrors: &[Mirror::Kvm, Mirror::Allocates], free: 1, ..ALLOCATION };
const EXIT: Scenario = Scenario { name: "exit", exits: true, free: 1, ..ALLOCATION };
const KVM_EXIT: Scenario = Scenario { name: "kvm-exit", exits: true, ..KVM };
const MAPS: Scenario = Scenario { name: "maps", maps: true, ..KVM };
const ROOMY: Scenario = Scenario { name: "roomy", free: 1, ..ALLOCATION };

/// All of them.
pub(super) fn configurations() -> Vec<Named> {
    let mut all = known_bad();
    // Neither KVM nor a device that pins waits for reclaim with its lock held.
    all.extend([KVM, KVM_EXIT, PINS].map(|scenario| good(Scheme::AlwaysBlock, scenario)));
    all.push(good(Scheme::SkipNotified, EXIT));
    for scheme in [Scheme::BailOut, Scheme::DriverRange, Scheme::IntervalTree] {
        all.extend([ALLOCATION, KVM, EXIT].map(|scenario| good(scheme, scenario)));
    }
    all.extend(
        [ALLOCATION, FLUSH, TWO_LOCKS].map(|scenario| good(Scheme::IntervalTreeChunks, scenario)),
    );
    for scheme in [Scheme::TryLock, Scheme::TryLockChunks, Scheme::Deferred] {
        let scenarios =
            [ALLOCATION, ROOMY, FLUSH, TWO_LOCKS, KVM, PINS, PAIR, EXIT, KVM_EXIT, MAPS];
        all.extend(scenarios.map(|scenario| good(scheme, scenario)));
    }
    all
}

fn good(scheme: Scheme, scenario: Scenario) -> Named {
    Named {
        name: format!("{scheme}-{}", scenario.name),
        about: scheme.to_string(),
        scenario: scenario.name,
        setting: Setting { scenario, scheme, mistake: None },
        kind: Kind::Good,
        breaks: &[],
        small: false,
    }
}

fn wrong(
    (name, about): (&str, &str),
    (scheme, mistake): (Scheme, Option<Mistake>),
    scenario: Scenario,
    breaks: &'static [Holds],
) -> Named {
    Named {
        name: name.to_owned(),
        about: about.to_owned(),
        scenario: scenario.name,
        setting: Setting { scenario, scheme, mistake },
        kind: Kind::KnownBad,
        breaks,
        small: false,
    }
}

const WAITS: &[Holds] = &[Holds::ReaperWaitsForNoReclaim];
const STARTS: &[Holds] = &[Holds::EachStartHasOneEnd];
const MAPPED: &[Holds] = &[Holds::FreedAfterLastInvalidation];

fn known_bad() -> Vec<Named> {
    let mut all = of_the_reaper();
    all.extend(of_the_core());
    all.extend(of_devices());
    all
}

fn of_the_reaper() -> Vec<Named> {
    use Scheme::{AlwaysBlock, IntervalTree, TryLock};
    let flaw = |flaw| Some(Mistake::Reaper(flaw));
    vec![
        wrong(
            ("always-block-allocation", "the reaper waits for a lock whose holder allocates"),
            (AlwaysBlock, None),
            ALLOCATION,
            WAITS,
        ),
        wrong(
            ("always-block-two-locks-away", "the holder waits for a worker, which allocates"),
            (AlwaysBlock, None),
            TWO_LOCKS,
            WAITS,
        ),
        wrong(
            ("reaper-waits-for-mmap-lock", "the holder of the mmap lock allocates"),
            (IntervalTree, flaw(Flaw::WaitsForMmapLock)),
            Scenario { free: 0, ..MAPS },
            WAITS,
        ),
        wrong(
            ("reaper-tries-until-done", "the holder of a lock waits for the reaper to end"),
            (TryLock, flaw(Flaw::TriesUntilDone)),
            ALLOCATION,
            &[Holds::AttemptsAreBounded],
        ),
        wrong(
            ("reaper-ignores-exit", "page tables of an exited process are walked"),
            (TryLock, flaw(Flaw::IgnoresExit)),
            KVM_EXIT,
            &[Holds::NoFreedTableIsWalked],
        ),
        wrong(
            ("reaper-zaps-without-lock", "reaper and exit read the same page table entry"),
            (TryLock, flaw(Flaw::ZapsWithoutLock)),
            KVM_EXIT,
            &[Holds::NothingFreedTwice],
        ),
    ]
}

fn of_the_core() -> Vec<Named> {
    use Scheme::TryLock;
    let flaw = |flaw| Some(Mistake::Reaper(Flaw::Core(flaw)));
    vec![
        wrong(
            ("start-without-end", "the second notifier fails, and the first gets no end"),
            (TryLock, flaw(NotifyFlaw::ForgetsEndOnFailure)),
            PAIR,
            STARTS,
        ),
        wrong(
            ("end-without-start", "the notifier that fails gets an end"),
            (TryLock, flaw(NotifyFlaw::EndsFailedStart)),
            PAIR,
            STARTS,
        ),
        wrong(
            ("freed-before-last-notifier", "the last notifier is asked after the free"),
            (TryLock, flaw(NotifyFlaw::FreesBeforeLastNotifier)),
            KVM,
            MAPPED,
        ),
    ]
}

fn of_devices() -> Vec<Named> {
    use Scheme::{Deferred, TryLock};
    let device = |flaw| Some(Mistake::Device(flaw));
    let kvm = |flaw| Some(Mistake::Kvm(flaw));
    vec![
        wrong(
            ("try-lock-maps-without-look", "a page is mapped that was looked up before the start"),
            (TryLock, device(DeviceFlaw::MapsWithoutLook)),
            ROOMY,
            MAPPED,
        ),
        wrong(
            ("try-lock-then-waits", "the lock is free, and the wait for the worker is not tried"),
            (TryLock, device(DeviceFlaw::TriesFirstLockOnly)),
            FLUSH,
            WAITS,
        ),
        wrong(
            ("try-lock-forgets-worker", "the worker uses what is freed"),
            (TryLock, device(DeviceFlaw::ForgetsWorker)),
            FLUSH,
            MAPPED,
        ),
        wrong(
            ("try-lock-counts-failed-start", "the device waits for the end of a start that failed"),
            (TryLock, device(DeviceFlaw::CountsFailedStart)),
            ALLOCATION,
            STARTS,
        ),
        wrong(
            ("deferred-frees-before-grace", "a marked range is freed at once"),
            (Deferred, device(DeviceFlaw::FreesBeforeGrace)),
            FLUSH,
            MAPPED,
        ),
        wrong(
            ("deferred-marks-too-late", "the last user has left when the range is marked"),
            (Deferred, device(DeviceFlaw::MarksTooLate)),
            ROOMY,
            &[Holds::WhatLeavesIsFreed],
        ),
        wrong(
            (
                "kvm-allocates-under-mmu-lock",
                "the second step waits for a lock that is held over reclaim",
            ),
            (TryLock, kvm(KvmFlaw::AllocatesUnderLock)),
            Scenario { free: 0, ..KVM },
            WAITS,
        ),
        wrong(
            ("kvm-reads-sequence-late", "the page was looked up before the sequence was read"),
            (TryLock, kvm(KvmFlaw::ReadsSequenceLate)),
            KVM,
            MAPPED,
        ),
        wrong(
            ("kvm-ignores-count", "a fault between start and end sees the sequence of before"),
            (TryLock, kvm(KvmFlaw::IgnoresCount)),
            KVM,
            MAPPED,
        ),
        wrong(
            ("pin-without-reference", "the device counts on the notifier, which frees the range"),
            (TryLock, Some(Mistake::Pin)),
            PINS,
            MAPPED,
        ),
    ]
}

pub(super) const NOTES: Notes = Notes {
    intro: "\
A configuration is a scenario with one scheme: the reaper, a device or two with a thread that maps a page, the worker \
of a device, in some the victim's exit or a thread of it that allocates with the mmap lock held. The address space has \
two private VMAs, one of them of interest to the devices in part, and a VMA of huge pages. The reaper has three \
attempts. Schemes and invariants are listed in [The OOM reaper](../../design/oom-reaper.md).
",
    good: "",
    small: "",
    candidates: "",
};
