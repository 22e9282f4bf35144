// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `hand-over`: daemons that are killed, ended and upgraded under a guest that uses, frees and verifies memory.
//!
//! | file | what |
//! |---|---|
//! | `daemons` | the daemons that end, each with one that goes on |
//! | `linux`, `bare` | the guests |

mod bare;
mod daemons;
mod linux;

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use strum::{Display, EnumString, VariantNames};

use self::daemons::{Daemons, Way};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::toolbox;
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};
use crate::store::{Findings, Place, Verdict, VerdictKind};

/// See the module.
pub(super) struct HandOver;

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Guest {
    /// Real Linux.
    Linux,
    /// The model as a guest of its own, which reports without a pause.
    Bare,
}

impl Guest {
    const ALL: [Self; 2] = [Self::Linux, Self::Bare];
}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        times: u16, Whole(1, 10_000), 10, 100, "daemons that end";
        ways: Vec<Way>, Several::any(), Way::ALL.to_vec(), Way::ALL.to_vec(),
            "how: by SIGKILL, by SIGTERM, or by an upgrade";
        guests: Vec<Guest>, Several::any(), Guest::ALL.to_vec(), Guest::ALL.to_vec(),
            "under real Linux, and under the bare guest, which reports without a pause";
    }
}

/// A guest, and how its daemons end.
pub(super) struct Ending {
    guest: Guest,
    way: Way,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.guest {
            Guest::Linux => write!(f, "{}", self.way),
            Guest::Bare => write!(f, "bare-{}", self.way),
        }
    }
}

impl Case for Ending {
    fn place(&self) -> Place {
        Place { table: self.guest.to_string(), column: self.way.to_string() }
    }
}

impl Experiment for HandOver {
    type Parameters = Settings;
    type Case = Ending;

    fn name(&self) -> &'static str {
        "hand-over"
    }

    fn about(&self) -> &'static str {
        "Ends the daemon under a guest in QEMU again and again, at moments at which the guest reports, and has \
         the next one go on: the longest gap, contents verified, memory that is reported and comes back after \
         each; with Linux the balloon and the pins as before, too."
    }

    fn repeats(&self, _: &Ending) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Ending> {
        let ways = |&guest: &Guest| settings.ways.iter().map(move |&way| Ending { guest, way });
        settings.guests.iter().flat_map(ways).collect()
    }

    fn run(&self, case: &Ending, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => toolbox,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let daemons = Daemons::start(case.way, settings.times, context)?;
        let mut gaps = match case.guest {
            Guest::Linux => linux::run(&toolbox, &daemons)?,
            Guest::Bare => bare::run(&daemons)?,
        };
        daemons.end()?;
        gaps.sort();
        let milliseconds = |gap: Duration| gap.as_secs_f64() * 1e3;
        let mut findings = Findings::default();
        findings.count(
            "times",
            settings.times.into(),
            "",
            "daemons that ended, each with one that went on",
        );
        for (name, place, what) in [
            ("gap-median", gaps.len() / 2, "the gap in the middle"),
            ("gap-longest", gaps.len() - 1, "the longest gap"),
        ] {
            findings.figure(name, milliseconds(gaps[place]), "ms", what);
        }
        let longest = milliseconds(gaps[gaps.len() - 1]);
        let text = format!(
            "{} daemons {}, gaps of at most {longest:.0} ms, nothing lost",
            settings.times, case.way
        );
        findings.verdict = Some(Verdict { kind: VerdictKind::Survived, text });
        Ok(findings)
    }
}
