// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Searches the interleavings of a model for one that breaks an invariant.
//!
//! A [`Model`] is a world, the actors in it, and what must hold. It runs with real threads and, with
//! the feature `shuttle`, under a scheduler that owns every interleaving (`search`). Some of its
//! [`Configuration`]s are known to break an invariant, and show that a search finds it; the others
//! must survive ten times as many schedules.
//!
//! A finding is a finding about the model. It says nothing of Linux until a real guest shows it.
//!
//! A schedule is sequentially consistent: every thread sees each step at once. A lost report that needs
//! a processor to reorder two steps is outside it. The package `litmus` has those questions.
//!
//! | file | |
//! |---|---|
//! | `model` | the trait, and what a run records |
//! | `case` | a configuration without its model's types, and one run of it |
//! | [`shadow`] | state kept beside a model's own |
//! | `strategies` | ways to choose a schedule, a file each |
//! | `search` | runs a case under the schedules of a strategy |
//! | `rounds` | searches many cases until the first falls |
//! | `cost` | counts atomic operations, by scheme |
//! | `table` | `docs/research/exploration/` |
//! | [`scenarios`] | the models, a folder each |

mod case;
#[cfg(feature = "shuttle")]
pub mod cost;
mod model;
#[cfg(feature = "shuttle")]
pub mod rounds;
pub mod scenarios;
#[cfg(feature = "shuttle")]
pub mod search;
pub mod shadow;
#[cfg(feature = "shuttle")]
pub mod strategies;
#[cfg(feature = "shuttle")]
pub mod table;
mod thread;

pub use case::{Case, Entry, cases};
pub use model::{Actor, Configuration, Invariant, Kind, Model, Notes, Run, Violation};

/// Every model, by name.
pub const MODELS: &[Entry] = &[
    Entry::of::<scenarios::reporting::Reporting>(),
    Entry::of::<scenarios::placement::Places>(),
    Entry::of::<scenarios::shared_page_tables::SharedPageTables>(),
    Entry::of::<scenarios::zonelists::Updates>(),
    Entry::of::<scenarios::oom_reaper::Reaps>(),
];

/// The model of this name.
pub fn model(name: &str) -> Option<&'static Entry> {
    MODELS.iter().find(|model| model.name == name)
}
