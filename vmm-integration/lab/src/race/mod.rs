// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Races: what free page reporting can collide with, in real Linux and in the model.
//!
//! | file | what |
//! |---|---|
//! | [`linux`] | memory blocks going offline and online in a real guest that reports |
//! | `offlining` | that as an experiment of the lab |
//! | `experiments` | the faults as experiments, and all of them together |
//! | `part4` | known bugs and hypotheses, each with a verdict |
//! | `agree` | what the model and Linux have in common |

mod agree;
mod experiments;
pub mod linux;
mod offlining;
mod part4;

pub use experiments::{Planned, experiments};
