// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The OOM reaper beside devices that mirror the memory of its victim, and the victim's exit.
//!
//! | file | |
//! |---|---|
//! | `invariant` | what must hold |
//! | `setting` | what a scenario consists of |
//! | `catalogue` | the configurations by name |
//! | `world` | what the actors share, and what is checked at rest |
//! | `scenario` | the model: world and actors of a scenario |

mod catalogue;
mod invariant;
mod scenario;
mod setting;
mod world;

pub use invariant::Holds;
pub use scenario::Reaps;
pub use setting::{Mirror, Mistake, Scenario, Setting};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
