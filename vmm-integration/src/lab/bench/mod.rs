//! The experiments.

mod scale;
mod trackers;

use super::experiment::Experiment;

/// All experiments, in the order in which a run of all goes through them.
pub fn experiments() -> &'static [&'static dyn Experiment] {
    &[&trackers::Trackers, &scale::Scale]
}
