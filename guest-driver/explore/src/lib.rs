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
//! | [`shadow`] | what the world knows of each page beside the model, with the invariants on them |
//! | [`actors`] | CPUs, offliner, contiguous allocator, isolator, hot-adder |
//! | [`host`] | who takes the reports, or does not, or not in time |
//! | [`scenario`] | one run: actors, and what must hold when all is quiet |
//! | [`catalogue`] | the configurations by name |
//! | `search` | schedulers: random and bounded-exhaustive |
//! | `table` | `docs/research/exploration.md` |

pub mod scenarios;
#[cfg(feature = "shuttle")]
pub mod search;
#[cfg(feature = "shuttle")]
pub mod table;
mod thread;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use guest_driver::page_alloc::KernelSemantics;
use guest_driver::reporting::Config;
use scenarios::reporting::scenario::Scenario;

/// What must hold in every schedule.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Invariant {
    /// From submitting to acknowledging a report no page in it is allocated, and no page in use loses
    /// its contents.
    NoReportedPageInUse,
    /// When all is quiet, every free block that is large enough has been reported.
    EveryFreeBlockReported,
    /// The allocator's counters and lists agree with the frames.
    CountersMatchFrames,
    /// A pageblock has one isolator, and that one ends the isolation.
    OneIsolatorPerPageblock,
    /// A pageblock has the same migratetype after a report as before.
    MigratetypeKept,
    /// Offlining ends.
    OffliningEnds,
    /// No allocation fails because reports withhold memory.
    NoOomWhileWithheld,
    /// A reporter on a quiet guest comes to rest.
    QuietGuestRests,
    /// The model's own assertions hold.
    ModelAssertionsHold,
}

impl Invariant {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name in output and tables.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The state that breaks it, in a few words.
    pub fn broken(self) -> &'static str {
        match self {
            Self::NoReportedPageInUse => "a page is reported and in use",
            Self::EveryFreeBlockReported => "a report is lost",
            Self::CountersMatchFrames => "counters and frames disagree",
            Self::OneIsolatorPerPageblock => "a pageblock has two isolators",
            Self::MigratetypeKept => "a pageblock has changed its migratetype",
            Self::OffliningEnds => "offlining does not end",
            Self::NoOomWhileWithheld => "an allocation fails while reports withhold memory",
            Self::QuietGuestRests => "a quiet guest goes on reporting",
            Self::ModelAssertionsHold => "an assertion of the model fails",
        }
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
