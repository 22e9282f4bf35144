// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes that update in place.

use super::super::invariant::Holds;
use super::parts::{Named, candidate, good, wrong};
use super::scenarios::{
    ALL, COMES_BACK, FULL_NODE, ONE_WORD, OVERLAP, PAIRS, TWO_WORDS, VMA_FLIP, VMA_PAIRS,
};
use guest_driver::placement::{Flaw, Scheme};

/// All of them.
pub(super) fn all() -> Vec<Named> {
    use Scheme::{
        CheckAfterReclaim, CheckAtRetry, InPlace, IntersectionCheck, NoRebind, TwoScopes, TwoStep,
    };
    let mut all = known_bad();
    // Nodes in one word, one after the other: a walk from the first to the second meets one of them.
    all.push(good(InPlace, ONE_WORD));
    for scheme in [TwoStep, TwoScopes] {
        // Nothing covers a VMA's policy.
        let own = ALL.into_iter().filter(|scenario| scenario.vma.is_none() && !scenario.reclaims);
        all.extend(own.map(|scenario| good(scheme, scenario)));
    }
    let without_reclaim = ALL.into_iter().filter(|scenario| !scenario.reclaims);
    all.extend(without_reclaim.map(|scenario| good(IntersectionCheck, scenario)));
    all.extend(ALL.map(|scenario| good(CheckAtRetry, scenario)));
    all.extend(ALL.map(|scenario| good(CheckAfterReclaim, scenario)));
    // A policy that keeps its nodes may be left out of account: see `no-rebind-comes-back`.
    let others = ALL.into_iter().filter(|scenario| scenario.name != PAIRS.name);
    all.extend(others.map(|scenario| good(NoRebind, scenario)));
    all
}

const NO_OOM: &[Holds] = &[Holds::NoOomWhileANodeCanServe];

fn known_bad() -> Vec<Named> {
    use Scheme::{CheckAtRetry, InPlace, IntersectionCheck, NoRebind, TwoScopes, TwoStep};
    vec![
        wrong(
            "in-place",
            "nodes and policies are overwritten, and no reader notices",
            (InPlace, None),
            VMA_FLIP,
            NO_OOM,
        ),
        wrong(
            "in-place-torn-mask",
            "between two words of the nodes there is none",
            (InPlace, None),
            TWO_WORDS,
            NO_OOM,
        ),
        wrong(
            "two-step-vma-policy",
            "a node stays, so that the sequence count does not change, and the VMA's policy has the other",
            (TwoStep, None),
            OVERLAP,
            NO_OOM,
        ),
        wrong(
            "two-scopes-vma-policy",
            "the slow path reads the sequence count after the nodes have changed",
            (TwoScopes, None),
            VMA_FLIP,
            NO_OOM,
        ),
        wrong(
            "intersection-check-endless-retry",
            "reclaim makes progress on a node that is new, and the walk begins behind it",
            (IntersectionCheck, None),
            FULL_NODE,
            &[Holds::TriesBoundedByUpdates],
        ),
        wrong(
            "check-at-retry-remembers-policy-nodes",
            "the next rebinding counts the nodes of the policy in the place of the cpuset's",
            (CheckAtRetry, Some(Flaw::RemembersPolicyNodes)),
            PAIRS,
            &[Holds::PolicyComesBack],
        ),
        wrong(
            "check-at-retry-trusts-sequence-count",
            "nobody asks again whether nodemask and cpuset intersect",
            (CheckAtRetry, Some(Flaw::TrustsSequenceCount)),
            VMA_FLIP,
            NO_OOM,
        ),
        wrong(
            "no-rebind-trusts-sequence-count",
            "whether policy and cpuset intersect is asked once",
            (NoRebind, Some(Flaw::TrustsSequenceCount)),
            VMA_FLIP,
            NO_OOM,
        ),
        candidate(
            "no-rebind-comes-back",
            "the cpuset gets a node of the policy's back once the nodemask was dropped",
            NoRebind,
            COMES_BACK,
            &[Holds::PageFromAValidNode],
        ),
        candidate(
            "check-at-retry-beyond-both-policies",
            "the VMA's nodemask is dropped since its cpuset has changed and its policy has not yet",
            CheckAtRetry,
            VMA_PAIRS,
            &[Holds::PageFromAValidNode],
        ),
    ]
}
