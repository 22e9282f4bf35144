// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tasks that allocate while the nodes of their cpuset change, and policies with them.
//!
//! | file | |
//! |---|---|
//! | `invariant` | what must hold |
//! | `setting` | what a scenario consists of |
//! | `catalogue` | the configurations by name |
//! | `history` | which nodes were valid when, beside the model |
//! | `reclaim` | what direct reclaim does |
//! | `world` | what the actors share, and how an allocation is judged |
//! | `scenario` | the model: world and actors of a scenario |

mod catalogue;
mod history;
mod invariant;
mod reclaim;
mod scenario;
mod setting;
mod world;

pub use invariant::Holds;
pub use scenario::Places;
pub use setting::{Asked, Scenario, Setting};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
