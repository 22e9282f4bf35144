// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations while the last memory block of a zone goes offline and online, and with it the zone leaves
//! all zonelists and comes back.
//!
//! | file | |
//! |---|---|
//! | `invariant` | what must hold |
//! | `setting` | what a scenario consists of |
//! | `catalogue` | the configurations by name |
//! | `around` | interrupts, the console, and who waits for whom |
//! | `world` | what the actors share, and how an allocation is judged |
//! | `scenario` | the model: world and actors of a scenario |

mod around;
mod catalogue;
mod invariant;
mod scenario;
mod setting;
mod world;

pub use invariant::Holds;
pub use scenario::Updates;
pub use setting::{Readers, Scenario, Setting};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
