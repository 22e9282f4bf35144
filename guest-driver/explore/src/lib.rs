// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Scenarios in which the reporter meets everything that it can collide with, and the invariants
//! that must hold in every interleaving of them.
//!
//! The same scenarios run with real threads and, with the feature `shuttle`, under a scheduler that
//! owns every interleaving (`search`). A [`Configuration`] is a scenario with one way to report.
//! Some are known to be wrong, and are here to show that a search would find it; the others have
//! to survive many times as many schedules.
//!
//! What is found is a finding about the model. It says nothing of Linux until a real guest shows it.
//!
//! | file | |
//! |---|---|
//! | [`ghost`] | what the world knows of each page beside the model, and invariants K1, K2, K4, K5 |
//! | [`actors`] | CPUs, offliner, contiguous allocator, isolator, hot-adder |
//! | [`host`] | who takes the reports, or does not, or not in time |
//! | [`scenario`] | one run: actors, and what must hold when all is quiet |
//! | [`catalogue`] | the configurations by name |
//! | `search` | schedulers: random and bounded-exhaustive |
//! | `table` | `docs/research/exploration.md` |

pub mod actors;
pub mod catalogue;
pub mod ghost;
pub mod host;
pub mod scenario;
#[cfg(feature = "shuttle")]
pub mod search;
#[cfg(feature = "shuttle")]
pub mod table;
mod thread;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use core::fmt;

use guest_driver::page_alloc::KernelSemantics;
use guest_driver::reporting::Config;
use scenario::Scenario;

/// What must hold, as numbered in section 1.002 of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// From submitting to acknowledging a report nobody has its pages; no byte in use is lost.
    K1,
    /// When all is quiet, every free block that is large enough has been reported.
    K2,
    /// The books agree with the frames.
    K3,
    /// A pageblock is isolated by one, who ends it.
    K4,
    /// A pageblock is of the same migratetype after a report as before.
    K5,
    /// Offlining ends.
    K6,
    /// Nobody goes without memory because reports withhold it.
    K7,
    /// A reporter on a quiet guest comes to rest.
    K9,
    /// The model noticed by itself that it had gone wrong.
    Assertion,
}

impl Invariant {
    /// Its meaning in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::K1 => "a page is reported and in use",
            Self::K2 => "a report is lost",
            Self::K3 => "the books are wrong",
            Self::K4 => "two isolate one pageblock",
            Self::K5 => "a pageblock has become of another migratetype",
            Self::K6 => "offlining does not end",
            Self::K7 => "out of memory while pages are withheld",
            Self::K9 => "a quiet guest goes on reporting",
            Self::Assertion => "an assertion of the model fails",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
}

/// A scenario with one way to report.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// By which it is asked for.
    pub name: String,
    /// In words.
    pub about: String,
    /// Who does what.
    pub scenario: Scenario,
    /// How it is reported.
    pub reporter: Config,
    /// Whose kernel's rules.
    pub semantics: KernelSemantics,
    /// Before it is looked for lost reports, some large block is freed. Mainline promises no more
    /// than that a report comes after the next such free.
    pub nudge: bool,
    /// Whether pageblocks of every migratetype keep theirs when they are reported. If not, those
    /// of a reserve have to all the same.
    pub keeps_types: bool,
    /// Whether it has to hold.
    pub expect: Expect,
}

/// What a search should find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Good,
    /// One of these, the first of them being what the mistake is known for.
    Bad(&'static [Invariant]),
    /// One of these, in what the model takes to be Linux as it is: a candidate, which nobody has
    /// seen there.
    Candidate(&'static [Invariant]),
}
