// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the processes do, and in which order.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use guest_agent::hugetlb::{Arrangement, Role, Sharing, StormPlan, StormReport};

use super::machine::Machine;
use super::settings::Settings;
use crate::experiment::Context;
use crate::progress;

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Load {
    /// Processes that map the file, touch it and unmap it.
    Mapping,
    /// Processes that have it mapped and fork.
    Forking,
    /// Both.
    Both,
    /// Processes that write to it, and one that punches holes.
    Punching,
    /// All roles.
    Storm,
    /// The same, traced.
    Traced,
}

pub(super) const LOADS: [Load; 6] =
    [Load::Mapping, Load::Forking, Load::Both, Load::Punching, Load::Storm, Load::Traced];
pub(super) const ARRANGEMENTS: [Arrangement; 2] = [Arrangement::Shared, Arrangement::Apart];

impl Load {
    fn roles(self, processes: u32) -> BTreeMap<Role, u32> {
        let all = [
            (Role::Mapper, 1),
            (Role::Forker, 1),
            (Role::Writer, 2),
            (Role::Puncher, 1),
            (Role::Splitter, 1),
            (Role::Private, 1),
        ];
        match self {
            Self::Mapping => BTreeMap::from([(Role::Mapper, processes)]),
            Self::Forking => BTreeMap::from([(Role::Forker, processes)]),
            Self::Both => BTreeMap::from([(Role::Mapper, processes), (Role::Forker, processes)]),
            Self::Punching => BTreeMap::from([(Role::Writer, processes), (Role::Puncher, 1)]),
            Self::Storm | Self::Traced => BTreeMap::from(all),
        }
    }
}

/// All reports.
#[derive(Default)]
pub(super) struct Measured {
    /// Of each load, shared and apart, a report a run.
    pub(super) reports: BTreeMap<(Load, Arrangement), Vec<StormReport>>,
    /// Where page tables are shared.
    pub(super) sharing: Option<Sharing>,
    /// What checks found.
    pub(super) found: Vec<String>,
}

impl Measured {
    pub(super) fn of(&self, load: Load, arrangement: Arrangement) -> &[StormReport] {
        self.reports.get(&(load, arrangement)).map_or(&[], Vec::as_slice)
    }

    /// Pages of which the contents were checked.
    pub(super) fn checks(&self) -> u64 {
        let done = self.reports.values().flatten().flat_map(|report| report.done.values());
        done.map(|done| done.checks).sum()
    }

    fn add(&mut self, load: Load, arrangement: Arrangement, report: StormReport) {
        let found = report.faults_found(arrangement);
        let text = |what| format!("{load:?}, {arrangement:?}: {what}");
        self.found.extend(found.into_iter().map(text));
        if arrangement == Arrangement::Shared {
            self.sharing = Some(report.sharing);
        }
        self.reports.entry((load, arrangement)).or_default().push(report);
    }
}

/// Runs all loads as often as is asked for.
pub(super) fn run_all(
    machine: &Machine,
    settings: &Settings,
    context: &Context<'_>,
) -> Result<Measured> {
    let milliseconds =
        u64::try_from(Duration::from_secs_f64(settings.seconds).as_millis()).unwrap_or(u64::MAX);
    let steps = u64::from(settings.runs) * (LOADS.len() * ARRANGEMENTS.len()) as u64;
    let mut measured = Measured::default();
    let mut step = 0;
    for run in 0..u64::from(settings.runs) {
        for load in LOADS {
            // Each comes first as often as the other.
            let mut order = ARRANGEMENTS;
            if run % 2 == 1 {
                order.reverse();
            }
            for arrangement in order {
                progress::check()?;
                context.progress.at(step, steps);
                step += 1;
                let plan = StormPlan {
                    seed: context.seed.wrapping_add(run),
                    arrangement,
                    pages: settings.pages,
                    milliseconds,
                    roles: load.roles(settings.processes),
                    trace: load == Load::Traced,
                    ..StormPlan::default()
                };
                measured.add(load, arrangement, machine.storm(&plan)?);
            }
        }
    }
    context.progress.at(steps, steps);
    Ok(measured)
}
