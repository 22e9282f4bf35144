// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name.

use super::invariant::Holds;
use super::setting::{Other, Scenario, Setting};
use crate::{Configuration, Kind, Notes};
use guest_driver::hugetlb::{Flaw, Scheme};

/// Text on the model's page.
pub(super) const NOTES: Notes = Notes {
    intro: "A configuration is a scheme in a scenario; known-bad ones are named after what is wrong. \
            [Shared page tables](../../design/shared-page-tables.md) explains schemes and invariants, and \
            [the results](../shared-page-tables.md) say what follows.\n",
    ..Notes::NONE
};

/// A fault in one process, a punch that unshares it, the exit of the other one, and a user of the page that
/// its page table was.
const PUNCH: Scenario = Scenario {
    name: "punch",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(1, 0)],
    actors: &[Other::Fault(0, 1), Other::Punch, Other::Exit(1), Other::Reuse],
};

/// Faults of three processes beside a truncation, a punch, a process that stops sharing and forks.
const STORM: Scenario = Scenario {
    name: "storm",
    pieces: 1,
    spaces: 4,
    mapped: &[0, 1, 2],
    faulted: &[(0, 0), (1, 1)],
    actors: &[
        Other::Fault(0, 2),
        Other::Fault(1, 2),
        Other::Unshare(2),
        Other::Fork(0, 3),
        Other::Punch,
        Other::Truncate,
    ],
};

/// A process that leaves while others join and are punched.
const LEAVE: Scenario = Scenario {
    name: "leave",
    pieces: 1,
    spaces: 3,
    mapped: &[0, 1, 2],
    faulted: &[(0, 0), (0, 1)],
    actors: &[
        Other::Fault(1, 1),
        Other::Fault(2, 1),
        Other::Exit(0),
        Other::Exit(2),
        Other::Punch,
        Other::Reuse,
    ],
};

/// GUP-fast in a process that is punched, while the other one maps private pages in the same page table.
const WALK: Scenario = Scenario {
    name: "walk",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(1, 0), (1, 1), (0, 0)],
    actors: &[Other::GupFast(0), Other::GupFast(0), Other::Punch, Other::MapPrivate(1)],
};

/// References to a page table without a lock beside a punch and a fault.
const SPECULATE: Scenario = Scenario {
    name: "speculate",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(0, 0), (0, 1)],
    actors: &[Other::Speculate, Other::Punch, Other::Fault(1, 1), Other::Exit(1)],
};

/// A VMA that is split while others share with it.
const SPLIT: Scenario = Scenario {
    name: "split",
    pieces: 1,
    spaces: 3,
    mapped: &[0, 1, 2],
    faulted: &[(0, 0), (0, 1)],
    actors: &[Other::Split(0), Other::Fault(1, 1), Other::Fault(2, 1), Other::Punch],
};

/// A copy-on-write fault beside a fault of the same page.
const COPY: Scenario = Scenario {
    name: "copy",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(0, 0), (0, 1)],
    actors: &[Other::CowFault(0), Other::Fault(1, 1), Other::Fault(1, 1)],
};

/// A process that faults and maps the file again beside a punch, which waits for the lock of a VMA that goes.
const REMAP: Scenario = Scenario {
    name: "remap",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(0, 0), (0, 1), (1, 0)],
    actors: &[Other::Fault(0, 1), Other::Remap(0), Other::Fault(0, 2), Other::Punch],
};

/// GUP-fast in a process that exits with page tables of its own.
const QUIT: Scenario = Scenario {
    name: "quit",
    pieces: 1,
    spaces: 2,
    mapped: &[0, 1],
    faulted: &[(0, 0), (0, 1)],
    actors: &[Other::GupFast(0), Other::GupFast(0), Other::Exit(0), Other::Fault(1, 1)],
};

const ALL: [Scenario; 9] = [PUNCH, STORM, LEAVE, WALK, SPECULATE, SPLIT, COPY, REMAP, QUIT];

pub(super) fn configurations() -> Vec<Configuration<Setting, Holds>> {
    let bad = |name: &str, about: &str, scenario, scheme, flaw, breaks| Configuration {
        kind: Kind::KnownBad,
        breaks,
        ..one(name.to_owned(), about.to_owned(), scenario, scheme, flaw)
    };
    let mut all = vec![
        bad(
            "nothing",
            "nothing keeps a page table in place under a fault",
            PUNCH,
            Scheme::Nothing,
            None,
            &[Holds::EntryInAnInstalledTable, Holds::LockOfALivePageTable],
        ),
        bad(
            "check-again",
            "a fault looks again under the lock, which is in a page that may be used as something else",
            PUNCH,
            Scheme::CheckAgain,
            None,
            &[Holds::LockOfALivePageTable],
        ),
        bad(
            "stop-eviction",
            "the same, and only the eviction of the inode waits for faults",
            PUNCH,
            Scheme::StopEviction,
            None,
            &[Holds::LockOfALivePageTable],
        ),
        bad(
            "references-are-shares",
            "vma-lock, the reference count of a page table says how many share it",
            SPECULATE,
            Scheme::VmaLock,
            Some(Flaw::CountsReferences),
            &[Holds::ShareCountMatchesUsers],
        ),
        bad(
            "gup-fast-is-not-awaited",
            "vma-lock, unsharing does not wait for those that walk page tables",
            WALK,
            Scheme::VmaLock,
            Some(Flaw::IgnoresWalkers),
            &[Holds::GupFastReturnsOwnPages],
        ),
        bad(
            "folio-lock-before-fault-mutex",
            "vma-lock, a copy-on-write fault waits for the fault mutex with a folio locked",
            COPY,
            Scheme::VmaLock,
            Some(Flaw::KeepsFolioLock),
            &[Holds::LocksInOneOrder],
        ),
        bad(
            "punch-skips-busy-vma",
            "vma-lock, a punch leaves out a VMA whose lock is taken",
            STORM,
            Scheme::VmaLock,
            Some(Flaw::SkipsBusyVma),
            &[Holds::NoMappingOfARemovedFolio],
        ),
        bad(
            "split-keeps-sharing",
            "vma-lock, a VMA is split without unsharing its page tables",
            SPLIT,
            Scheme::VmaLock,
            Some(Flaw::SplitKeepsSharing),
            &[Holds::OnlyWholeVmasShare],
        ),
    ];
    for scenario in ALL {
        for &scheme in Scheme::SOUND {
            let name = format!("{scheme}-{}", scenario.name);
            all.push(one(name, scheme.to_string(), scenario.clone(), scheme, None));
        }
    }
    all
}

fn one(
    name: String,
    about: String,
    scenario: Scenario,
    scheme: Scheme,
    flaw: Option<Flaw>,
) -> Configuration<Setting, Holds> {
    Configuration {
        name,
        about,
        scenario: scenario.name,
        setting: Setting { scenario, scheme, flaw },
        kind: Kind::Good,
        breaks: &[],
        small: false,
    }
}
