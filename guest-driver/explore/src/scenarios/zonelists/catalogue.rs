// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name: what is known to be wrong, what was proposed, and what is meant to work.

use guest_driver::page_alloc::{ZonelistFlaw, ZonelistUpdate};

use super::invariant::Holds;
use super::setting::{Readers, Scenario, Setting};
use crate::{Configuration, Kind, Notes};

type Named = Configuration<Setting, Holds>;

/// Two CPUs that allocate for the kernel, in the slow path, and an update.
const KERNEL: Scenario = Scenario {
    name: "kernel",
    readers: Readers::Kernel,
    count: 2,
    rounds: 2,
    updates: 2,
    tight: true,
    interrupts: 0,
    lines: 0,
    reclaims: false,
    may_fail: false,
};

/// The same in the fast path.
const FAST: Scenario = Scenario { name: "fast", tight: false, ..KERNEL };

/// Allocations that are bound to another node, whose zone comes last in the list.
const BOUND: Scenario = Scenario { name: "bound", readers: Readers::Bound, ..KERNEL };

/// Reclaim goes on making progress.
const RECLAIM: Scenario = Scenario { name: "reclaim", reclaims: true, ..KERNEL };

/// The zone goes, once.
const OFFLINE: Scenario = Scenario { name: "offline", updates: 1, ..KERNEL };

/// The same, and only the OOM killer counts.
const CACHED: Scenario = Scenario { name: "cached", may_fail: true, ..OFFLINE };

/// More CPUs that allocate in the fast path, and more updates.
const BUSY: Scenario = Scenario { name: "busy", count: 3, rounds: 4, updates: 4, ..FAST };

/// The zone comes back and goes again under one allocation.
const OFTEN: Scenario = Scenario { name: "often", count: 1, updates: 5, rounds: 2, ..KERNEL };

/// Interrupts allocate on the CPU that updates.
const INTERRUPTS: Scenario = Scenario { name: "interrupts", count: 1, interrupts: 2, ..KERNEL };

/// Another CPU prints, and allocates while it has the console.
const CONSOLE: Scenario = Scenario { name: "console", count: 1, lines: 2, ..KERNEL };

/// Walks that take nothing.
const WALKS: Scenario = Scenario {
    name: "walks",
    readers: Readers::Walk,
    tight: false,
    rounds: 3,
    updates: 3,
    ..KERNEL
};

/// All of them.
pub(super) fn configurations() -> Vec<Named> {
    let mut all = known_bad();
    all.extend(candidates());
    all.extend(good());
    all
}

fn setting(update: ZonelistUpdate, scenario: Scenario) -> Setting {
    Setting { scenario, update, flaw: None, eligible: false }
}

fn wrong(kind: Kind, name: &str, about: &str, setting: Setting, breaks: &'static [Holds]) -> Named {
    let (name, about) = (name.to_owned(), about.to_owned());
    let scenario = setting.scenario.name;
    Named { name, about, scenario, setting, kind, breaks, small: false }
}

const OOM: &[Holds] = &[Holds::NoOomWhileAZoneCanServe];

fn known_bad() -> Vec<Named> {
    use ZonelistUpdate as Update;
    let bad = |name, about, setting, breaks| wrong(Kind::KnownBad, name, about, setting, breaks);
    let missed = |name, about, update| {
        bad(name, about, setting(update, WALKS), &[Holds::WalkMissesNoZone, Holds::WalkVisitsOnce])
    };
    vec![
        bad(
            "overwrite-cached-zoneref",
            "the preferred zone is cached, and its entry becomes the end of the list (2022)",
            setting(Update::Overwrite, CACHED),
            OOM,
        ),
        bad(
            "overwrite-onlining",
            "the zone that comes back is written in front, and behind it the list still ends",
            setting(Update::Overwrite, OFTEN),
            OOM,
        ),
        bad(
            "overwrite-bound",
            "the same of an allocation that is bound to another node",
            setting(Update::Overwrite, BOUND),
            OOM,
        ),
        bad(
            "overwrite-tries-on-and-on",
            "the same while reclaim makes progress: neither a page nor an end",
            setting(Update::Overwrite, Scenario { reclaims: true, ..CACHED }),
            &[Holds::TriesBoundedByRebuilds],
        ),
        bad(
            "stop-machine-preempted-reader",
            "all CPUs stand still, and a reader that was preempted goes on in the new list",
            setting(Update::StopMachine, OFFLINE),
            OOM,
        ),
        bad(
            "stop-machine-cached-zoneref",
            "the same of one that has cached its preferred zone",
            setting(Update::StopMachine, CACHED),
            OOM,
        ),
        missed("stop-machine-walks", "a preempted walk misses a zone", Update::StopMachine),
        missed("overwrite-walks", "a walk misses a zone or visits one twice", Update::Overwrite),
        bad(
            "sequence-count-interrupted",
            "an interrupt comes while the sequence count is odd, and its handler waits for it (2023)",
            setting(Update::SequenceCountInterruptible, INTERRUPTS),
            &[Holds::NoDeadlockWithTheWriter],
        ),
        bad(
            "sequence-count-prints",
            "the writer waits for the console, which a CPU has that waits for the writer (2023)",
            setting(Update::SequenceCountPrinting, CONSOLE),
            &[Holds::NoDeadlockWithTheWriter],
        ),
        bad(
            "rcu-without-grace",
            "the lists that were swapped out are freed at once",
            Setting { flaw: Some(ZonelistFlaw::SwapsWithoutGrace), ..setting(Update::Rcu, KERNEL) },
            &[Holds::NoFreedListIsRead],
        ),
    ]
}

fn candidates() -> Vec<Named> {
    use ZonelistUpdate as Update;
    let may = |name, about, setting, breaks| wrong(Kind::Candidate, name, about, setting, breaks);
    let eligible = |update, scenario| Setting { eligible: true, ..setting(update, scenario) };
    vec![
        may(
            "append-and-terminate-lookup",
            "from the front each zone is always to be seen, but not by a walk that has passed it",
            setting(Update::AppendAndTerminate, OFFLINE),
            OOM,
        ),
        may(
            "append-and-terminate-cached-zoneref",
            "nor from an index that is cached",
            setting(Update::AppendAndTerminate, CACHED),
            OOM,
        ),
        may(
            "append-and-terminate-bound",
            "the same of an allocation that is bound to another node",
            setting(Update::AppendAndTerminate, Scenario { may_fail: true, ..BOUND }),
            OOM,
        ),
        may(
            "append-and-terminate-walks",
            "a walk misses a zone or visits one twice",
            setting(Update::AppendAndTerminate, WALKS),
            &[Holds::WalkVisitsOnce, Holds::WalkMissesNoZone],
        ),
        may(
            "sequence-count-unmovable-in-movable",
            "the fast path takes what is at the cached index: by then a movable zone, for the kernel",
            eligible(Update::SequenceCount, BUSY),
            &[Holds::PageFromAnEligibleZone],
        ),
        may(
            "sequence-count-outside-the-nodemask",
            "the same of an allocation that is bound to another node",
            eligible(
                Update::SequenceCount,
                Scenario { tight: false, rounds: 3, updates: 3, ..BOUND },
            ),
            &[Holds::PageFromAnEligibleZone],
        ),
    ]
}

fn good() -> Vec<Named> {
    let all = [KERNEL, FAST, BOUND, RECLAIM, OFTEN, INTERRUPTS, CONSOLE];
    let of = |update: ZonelistUpdate, scenario: Scenario| Named {
        name: format!("{update}-{}", scenario.name),
        about: update.to_string(),
        scenario: scenario.name,
        setting: Setting { eligible: update == ZonelistUpdate::Rcu, ..setting(update, scenario) },
        kind: Kind::Good,
        breaks: &[],
        small: false,
    };
    let counts = all.map(|scenario| of(ZonelistUpdate::SequenceCount, scenario));
    let rcu = all.into_iter().chain([WALKS]).map(|scenario| of(ZonelistUpdate::Rcu, scenario));
    counts.into_iter().chain(rcu).collect()
}

pub(super) const NOTES: Notes = Notes {
    intro: "\
A configuration is a scenario with one way to update zonelists: CPUs that allocate from a normal zone, or only walk \
the list, and a writer that takes the only memory block of a movable zone offline and online again. In some an \
interrupt allocates on the writer's CPU, or another CPU prints. The normal zone has free memory throughout. Schemes \
and invariants are listed in [model.md](../../design/model.md#zonelists).
",
    good: "\
`page-from-an-eligible-zone` is required of `rcu` only: see the candidates.
",
    small: "",
    candidates: "\
*append-and-terminate* was proposed in July 2017 and never built. It keeps each zone visible to a walk from the \
front. A reader that has passed an entry, or has looked up an index, goes on behind it: the zone that it looks for \
has moved to the front by then, and the list ends. One update is enough.

And what the model shows of Linux as it understands it: the first zone of a walk was found to be eligible when its \
index was looked up, and is not looked at again. When the first memory block of a movable zone comes online in \
between, an allocation for the kernel finds that zone there. The sequence count does not tell: it is looked at only \
by allocations that found nothing. No report of this is known.
",
};
