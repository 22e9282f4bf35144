// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes that share page tables of hugetlbfs: faults beside punches, truncations, forks, exits, splits,
//! speculative references and GUP-fast.
//!
//! | file | |
//! |---|---|
//! | `invariant` | what must hold |
//! | `setting` | what a scenario consists of |
//! | `catalogue` | the configurations by name |
//! | `scenario` | the model: world and actors |

mod catalogue;
mod invariant;
mod scenario;
mod setting;

pub use invariant::Holds;
pub use scenario::SharedPageTables;
pub use setting::{Other, Scenario, Setting};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
