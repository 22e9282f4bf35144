// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter, and everything that it can collide with: CPUs that allocate and free, an offliner,
//! contiguous allocators, other isolators, memory that is added, a zone that is low, a host that answers
//! late.
//!
//! | file | |
//! |---|---|
//! | `invariant` | what must hold |
//! | `setting` | what a scenario consists of |
//! | `catalogue` | the configurations by name |
//! | `pages` | what is known of each page beside the model, with the invariants on it |
//! | `world` | what the actors share |
//! | `actors` | what each of them does |
//! | `host` | what takes the reports, or does not, or not in time |
//! | `scenario` | the model: these together |
//! | `rest` | what must hold when all is quiet |

mod actors;
mod catalogue;
mod host;
mod invariant;
mod pages;
mod rest;
mod scenario;
mod setting;
mod world;

pub use invariant::Holds;
pub use scenario::Reporting;
pub use setting::{Answers, CpuPlan, Other, Patience, Scenario, Setting};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
