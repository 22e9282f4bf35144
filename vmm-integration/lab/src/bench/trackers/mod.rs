// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `trackers`: the five ways to remember what needs reporting, with the two ways to hold it.
//!
//! Message 002 of November 2019 left it open which of them is any good, and whether reporting a page
//! again and races between reporting and allocation matter.

mod churn;
mod guest;
pub(crate) mod scheme;
mod sweep;
mod threads;
mod virtual_time;

use anyhow::{Context as _, Result, bail};

use crate::experiment::{Context, Experiment, Repeats};
use crate::parameters::{Kind, Parameter, Settings};
use crate::store::Findings;
use churn::{CHURNS, Churn};
use guest_driver::reporting::{Holding, TrackerKind};
use scheme::Scheme;

/// See the module.
pub(crate) struct Trackers;

/// What is done to each scheme, beside the churns.
const SWEEP: &str = "sweep";
const THREADS: &str = "threads";

const PARAMETERS: &[Parameter] = &[
    Parameter {
        name: "tracker",
        what: "which trackers",
        kind: Kind::Choices(TrackerKind::NAMES),
        quick: "zone-bitmap,zone-bitmap-rcu,section-bitmap,section-bit,reported-flag",
        full: "zone-bitmap,zone-bitmap-rcu,section-bitmap,section-bit,reported-flag",
    },
    Parameter {
        name: "holding",
        what: "how reported pages are held: isolated, or pulled off the free lists",
        kind: Kind::Choices(Holding::NAMES),
        quick: "isolate,pull",
        full: "isolate,pull",
    },
    Parameter {
        name: "churn",
        what: "how frees are spread; sweep is uniform churn from rare to frequent, threads is with \
               real threads in real time",
        kind: Kind::Choices(&["uniform", "local", "bursty", SWEEP, THREADS]),
        quick: "uniform,local,bursty,sweep,threads",
        full: "uniform,local,bursty,sweep,threads",
    },
    Parameter {
        name: "memory",
        what: "of the guest",
        kind: Kind::Bytes(1 << 28, 1 << 38),
        quick: "4G",
        full: "32G",
    },
    Parameter {
        name: "used",
        what: "percent of memory that the programs hold",
        kind: Kind::Number(5, 90),
        quick: "50",
        full: "50",
    },
    Parameter {
        name: "order",
        what: "of the programs' blocks",
        kind: Kind::Number(0, 10),
        quick: "9",
        full: "9",
    },
    Parameter {
        name: "rate",
        what: "memory freed a second by uniform and local churn, and taken again",
        kind: Kind::Bytes(1 << 12, 1 << 36),
        quick: "256M",
        full: "1G",
    },
    Parameter {
        name: "swing",
        what: "percent by which what is in use goes up and down in 20 s of uniform and local churn; \
               with none nearly all that is freed is taken again at once, last in, first out",
        kind: Kind::Number(0, 50),
        quick: "20",
        full: "20",
    },
    Parameter {
        name: "seconds",
        what: "virtual seconds",
        kind: Kind::Real(1.0, 36000.0),
        quick: "60",
        full: "600",
    },
    Parameter {
        name: "delay",
        what: "seconds from a free to the pass that it asks for",
        kind: Kind::Real(0.001, 600.0),
        quick: "2",
        full: "2",
    },
    Parameter {
        name: "batch",
        what: "granules of a report",
        kind: Kind::Number(1, 32),
        quick: "32",
        full: "32",
    },
    Parameter {
        name: "round-trip",
        what: "microseconds of a report there and back, beside the host's own work",
        kind: Kind::Number(0, 10_000_000),
        quick: "50",
        full: "50",
    },
    Parameter {
        name: "host",
        what: "GiB a second that the host gives back (5.3 was measured for 4 KiB pages)",
        kind: Kind::Real(0.001, 10000.0),
        quick: "5.3",
        full: "5.3",
    },
    Parameter {
        name: "thread-seconds",
        what: "seconds of each measurement with threads",
        kind: Kind::Real(0.02, 600.0),
        quick: "0.2",
        full: "3",
    },
];

impl Experiment for Trackers {
    fn name(&self) -> &'static str {
        "trackers"
    }

    fn about(&self) -> &'static str {
        "Every tracker, each with isolation and with pulling, under churn: duplicates, time \
         until freed memory is back, work, memory withheld, races."
    }

    fn parameters(&self) -> &'static [Parameter] {
        PARAMETERS
    }

    fn repeats(&self, case: &str) -> Repeats {
        if case.ends_with(THREADS) { Repeats::ButForTimes } else { Repeats::Exactly }
    }

    fn cases(&self, settings: &Settings) -> Vec<String> {
        let schemes = Scheme::of(settings.choices("tracker"), settings.choices("holding"));
        let churns = settings.choices("churn");
        let of = |churn: &&'static str| {
            let name = |scheme: &Scheme| format!("{}-{churn}", scheme.name());
            schemes.iter().map(name).collect::<Vec<_>>()
        };
        churns.iter().flat_map(of).collect()
    }

    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let scheme = Scheme::named(case).with_context(|| format!("no scheme in {case}"))?;
        let churn = case.rsplit('-').next().unwrap_or_default();
        match churn {
            SWEEP => sweep::run(scheme, settings, context),
            THREADS => threads::run(scheme, settings, context),
            _ => match Churn::named(churn) {
                Some(churn) => virtual_time::run(scheme, churn, settings, context),
                None => bail!("no churn in {case}: expected one of {}", CHURNS.join(", ")),
            },
        }
    }
}
