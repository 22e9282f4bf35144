// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `placement`: what it costs to say where an allocation may go, and to change that.
//!
//! | file | measures |
//! |---|---|
//! | `seen`, `subject`, `zonelists` | the schemes as all of it sees them |
//! | `speed` | allocations that nothing hinders, beside those without a constraint |
//! | `updates` | the time of an update |
//! | `races` | allocations beside updates: retries, and OOMs that need not be |
//! | `bytes` | memory a cpuset |

mod bytes;
mod races;
mod seen;
mod speed;
mod subject;
mod updates;
mod zonelists;

use std::fmt;

use anyhow::Result;
use guest_driver::page_alloc::ZonelistUpdate;
use guest_driver::placement::Scheme;

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::{Real, Several, Whole};
use crate::store::{Findings, Place};
use subject::{Asks, Which};

/// See the module.
pub(super) struct Placing;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        scheme: Vec<Scheme>, Several::any(), Scheme::ALL.to_vec(), Scheme::ALL.to_vec(),
            "ways to update the nodes of a cpuset and its policies";
        zonelists: Vec<ZonelistUpdate>, Several::any(), ZonelistUpdate::ALL.to_vec(),
            ZonelistUpdate::ALL.to_vec(), "ways to update zonelists";
        policy: Vec<Asks>, Several::any(), vec![Asks::Bind], vec![Asks::Bind, Asks::Default],
            "policy of the allocations: of a VMA that is bound to the nodes of the cpuset, or none";
        turns: usize, Whole(1, 1000), 9, 41,
            "turns of a scheme and of no constraint, each with new memory, of which the median counts";
        allocations: u32, Whole(100, 100_000_000), 20_000, 200_000, "allocations of each thread in a turn";
        seconds: f64, Real(0.01, 600.0), 0.2, 5.0, "seconds of each measurement of the time of an update";
        race: f64, Real(0.01, 3600.0), 1.0, 60.0, "seconds of allocations beside updates without a pause";
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpuset(scheme, asks) => write!(f, "cpuset-{scheme}-{asks}"),
            Self::Zonelist(update) => write!(f, "zonelist-{update}"),
        }
    }
}

impl Case for Which {
    fn place(&self) -> Place {
        match self {
            Self::Cpuset(scheme, asks) => {
                Place { table: format!("cpuset-{asks}"), column: scheme.to_string() }
            }
            Self::Zonelist(update) => {
                Place { table: "zonelist".to_owned(), column: update.to_string() }
            }
        }
    }
}

impl Experiment for Placing {
    type Parameters = Settings;
    type Case = Which;

    fn name(&self) -> &'static str {
        "placement"
    }

    fn about(&self) -> &'static str {
        "Compares ways to say where an allocation may go, and to change that: allocations a second, the \
         time of an update, retries, OOMs with memory to spare, memory a cpuset."
    }

    fn repeats(&self, _: &Which) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, settings: &Settings) -> Vec<Which> {
        let by =
            |&asks: &Asks| settings.scheme.iter().map(move |&scheme| Which::Cpuset(scheme, asks));
        let zonelists = settings.zonelists.iter().map(|&update| Which::Zonelist(update));
        settings.policy.iter().flat_map(by).chain(zonelists).collect()
    }

    fn run(&self, &which: &Which, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        speed::run(which, settings, context, &mut findings)?;
        if which.updates() {
            updates::run(which, settings, context, &mut findings)?;
            races::run(which, settings, context, &mut findings)?;
        } else {
            findings.note(
                "Updates are left out: real threads do not stand still while the lists are overwritten. \
                 The explorer has them.",
            );
        }
        bytes::run(which, context, &mut findings)?;
        findings.note(
            "Real threads on a machine that others may use: ratios hold, since both sides take turns; \
             times and rates move between runs. `cargo explore --cost` counts the atomic operations.",
        );
        Ok(findings)
    }
}
