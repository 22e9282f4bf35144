// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The experiments.

mod bare_guest;
pub(crate) mod daemon;
mod footprint;
mod footprint_trace;
mod guests;
mod holding;
mod init_claims;
mod kernel;
mod oom_reaper;
mod overhead;
mod pairs;
mod park;
mod placement;
mod reclaim;
mod reclaim_path;
mod scale;
mod shared_page_tables;
mod trackers;

use crate::experiment::AnyExperiment;

/// All experiments, in the order in which a run of all runs them.
pub fn experiments() -> &'static [&'static dyn AnyExperiment] {
    &[
        &trackers::Trackers,
        &scale::Scale,
        &holding::HoldingCost,
        &placement::Placing,
        &oom_reaper::OomReaper,
        &shared_page_tables::SharedPageTables,
        &reclaim::Reclaim,
        &reclaim_path::ReclaimPath,
        &overhead::Overhead,
        &bare_guest::BareGuest,
        &init_claims::InitClaims,
        &kernel::KernelSchemes,
        &footprint::Footprint,
        &park::Park,
    ]
}
