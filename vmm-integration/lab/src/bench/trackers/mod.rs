// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `trackers`: the ways to remember which blocks to report, with the two ways to hold them.
//!
//! The discussion of November 2019 on linux-mm left open which of them works well, and whether duplicate
//! reports and races between reporting and allocation matter: see `docs/research/questions.md`.

mod churn;
mod guest;
pub(crate) mod scheme;
mod settings;
mod sweep;
mod threads;
mod virtual_time;

use std::fmt;

use anyhow::Result;

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::store::{Findings, Place};
use churn::Churn;
use scheme::Scheme;
use settings::{Load, Settings};

/// See the module.
pub(super) struct Trackers;

/// A scheme under a load.
pub(super) struct Loaded {
    scheme: Scheme,
    load: Load,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.scheme, self.load)
    }
}

impl Case for Loaded {
    fn place(&self) -> Place {
        Place { table: self.load.to_string(), column: self.scheme.to_string() }
    }
}

impl Experiment for Trackers {
    type Parameters = Settings;
    type Case = Loaded;

    fn name(&self) -> &'static str {
        "trackers"
    }

    fn about(&self) -> &'static str {
        "Compares all trackers, with isolation and with pulling, under churn: duplicate reports, time \
         until the host has freed memory, work, memory withheld, races."
    }

    fn repeats(&self, case: &Loaded) -> Repeats {
        match case.load {
            Load::Threads => Repeats::ButForTimes,
            Load::Uniform | Load::Local | Load::Bursty | Load::Sweep => Repeats::Exactly,
        }
    }

    fn cases(&self, settings: &Settings) -> Vec<Loaded> {
        let schemes = Scheme::of(&settings.tracker, &settings.holding);
        let under = |&load: &Load| schemes.iter().map(move |&scheme| Loaded { scheme, load });
        settings.churn.iter().flat_map(under).collect()
    }

    fn run(&self, case: &Loaded, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let scheme = case.scheme;
        let churned = |churn| virtual_time::run(scheme, churn, settings, context);
        match case.load {
            Load::Uniform => churned(Churn::Uniform),
            Load::Local => churned(Churn::Local),
            Load::Bursty => churned(Churn::Bursty),
            Load::Sweep => sweep::run(scheme, settings, context),
            Load::Threads => threads::run(scheme, settings, context),
        }
    }
}
