// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes that swap an updated copy in.

use super::super::invariant::Holds;
use super::parts::{Named, good, wrong};
use super::scenarios::{
    ALL, BOUND_FLIP, FLIP, LEFT_NODE, LEFT_VMA, MANY_UPDATES, NO_MEMORY, RECLAIM, UPDATES, VMA_FLIP,
};
use crate::Kind::{Candidate, KnownBad};
use guest_driver::placement::{Flaw, Scheme};

/// All of them.
pub(super) fn all() -> Vec<Named> {
    use Scheme::{CountedCopy, CountedZonelists, EpochCopy, LockedZonelists, SoftwallZonelists};
    let mut all = known_bad();
    let more = [LEFT_NODE, LEFT_VMA, MANY_UPDATES, NO_MEMORY, RECLAIM, UPDATES];
    for scheme in [CountedCopy, EpochCopy, CountedZonelists, LockedZonelists] {
        all.extend(ALL.into_iter().chain(more).map(|scenario| good(scheme, scenario)));
    }
    // For pages of programs it is the same as `counted-zonelists`.
    all.extend([VMA_FLIP, NO_MEMORY].map(|scenario| good(SoftwallZonelists, scenario)));
    all
}

const NO_OOM: &[Holds] = &[Holds::NoOomWhileANodeCanServe];
const USED: &[Holds] = &[Holds::NothingFreedIsUsed];

fn known_bad() -> Vec<Named> {
    use Scheme::{CountedCopy, CountedZonelists, EpochCopy, LockedZonelists};
    let mut all = vec![
        wrong(
            "locked-zonelists-locks-across-reclaim",
            "reclaim keeps the lock, a writer waits for it, and reclaim allocates behind the writer",
            (LockedZonelists, Some(Flaw::LocksAcrossReclaim)),
            RECLAIM,
            &[Holds::EveryWaitEnds],
        ),
        wrong(
            "counted-copy-counts-blindly",
            "a reader loads the pointer, and counts in what has been freed since",
            (CountedCopy, Some(Flaw::CountsBlindly)),
            UPDATES,
            USED,
        ),
        wrong(
            "counted-copy-counts-without-look",
            "a reader counts in a slot that another copy has by then",
            (CountedCopy, Some(Flaw::CountsWithoutLook)),
            UPDATES,
            USED,
        ),
        wrong(
            "epoch-copy-waits-for-one-epoch",
            "a reader looks which epoch it is, and joins it after that has been waited for",
            (EpochCopy, Some(Flaw::WaitsForOneEpoch)),
            MANY_UPDATES,
            USED,
        ),
        wrong(
            "epoch-copy-joins-grace-period",
            "a copy is freed with a grace period that had begun before readers that use it",
            (EpochCopy, Some(Flaw::JoinsGracePeriod)),
            UPDATES,
            USED,
        ),
    ];
    for (scheme, scenario) in
        [(CountedCopy, BOUND_FLIP), (EpochCopy, FLIP), (CountedZonelists, FLIP)]
    {
        all.push(wrong(
            &format!("{scheme}-swaps-without-grace"),
            "what was swapped out is freed at once",
            (scheme, Some(Flaw::SwapsWithoutGrace)),
            scenario,
            USED,
        ));
        let proposed = scheme == CountedZonelists;
        let (name, kind) =
            if proposed { ("as-proposed", Candidate) } else { ("trusts-its-copy", KnownBad) };
        let trusting = wrong(
            &format!("{scheme}-{name}"),
            "what an allocation holds stays valid for as long as it is held, and is out of date",
            (scheme, Some(Flaw::TrustsItsCopy)),
            LEFT_NODE,
            NO_OOM,
        );
        all.push(Named { kind, ..trusting });
        all.push(wrong(
            &format!("{scheme}-swaps-one-by-one"),
            "an update that fails in the middle needs memory to go back",
            (scheme, Some(Flaw::SwapsOneByOne)),
            NO_MEMORY,
            &[Holds::FailedUpdateChangesNothing],
        ));
    }
    all
}
