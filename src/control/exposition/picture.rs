// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Everything that metrics are made of: what a control client is shown as JSON, and the process.

use super::process::Process;
use crate::control::counters::CountersView;
use crate::control::views::{StatisticsView, StatusView};
use crate::state::State;

/// The daemon at one moment.
#[derive(Debug)]
pub(super) struct Picture {
    /// As `GET /v1/status` shows it.
    pub status: StatusView,
    /// As `GET /v1/counters` shows them, but since the daemon started.
    pub counters: CountersView,
    /// As `GET /v1/statistics` shows them.
    pub statistics: StatisticsView,
    /// The process.
    pub process: Process,
}

impl Picture {
    /// The picture now, with what is known of the guest's resident memory.
    pub(super) fn of(state: &State, resident_bytes: Option<u64>) -> Self {
        Self {
            status: StatusView::of(state, resident_bytes),
            counters: CountersView::of(&state.counters.snapshot()),
            statistics: StatisticsView::of(state),
            process: Process::look(state.started()),
        }
    }
}
