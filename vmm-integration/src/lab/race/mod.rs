//! Races: what free page reporting can collide with, in real Linux and in the model.
//!
//! | file | what |
//! |---|---|
//! | [`linux`] | memory blocks going offline and online in a real guest that reports |
//! | `experiments` | that, and the faults, as experiments of the lab |
//! | `part4` | known bugs and hypotheses, each with a verdict |
//! | `agree` | what the model and Linux have in common |

mod agree;
mod experiments;
pub mod linux;
mod part4;

pub use experiments::{Planned, experiments};
