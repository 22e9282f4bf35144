// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `oom-reaper`: what the reaper of the model frees beside devices, in virtual time, beside the closed forms.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use guest_driver::oom_reaper::Scheme;
use guest_driver::oom_reaper::measure::{Load, Measured};
use guest_driver::random::Random;

use super::pairs::Estimate;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};
use crate::progress;
use crate::store::{Findings, Place};

/// How long a lock is held, where that is long.
const LONG: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct OomReaper;

/// What is of interest to devices, and how busy their locks are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Interest {
    /// Half of the VMAs, with locks that are held half of the time.
    Vma,
    /// The same, nine tenths of the time.
    BusyVma,
    /// The same, for 2 s at a time.
    LongVma,
    /// A fifth of the chunks of 2 MiB, with locks that are held half of the time.
    Chunk,
    /// The same, nine tenths of the time.
    BusyChunk,
    /// All of a process, which is one VMA, with a lock that is held nine tenths of the time, for 2 s at a time.
    Whole,
}

const INTERESTS: [Interest; 6] = [
    Interest::Vma,
    Interest::BusyVma,
    Interest::LongVma,
    Interest::Chunk,
    Interest::BusyChunk,
    Interest::Whole,
];

impl Interest {
    /// Processes of 128 MiB, of which all but one kind have VMAs of 8 MiB.
    fn load(self, victims: u64) -> Load {
        let whole =
            Load { coverage: 0.5, chunk_pages: 2_048, victims, needed: 0.25, ..Load::default() };
        let parts = Load { coverage: 0.2, chunks: 4, chunk_pages: 512, ..whole };
        match self {
            Self::Vma => Load { duty: 0.5, ..whole },
            Self::BusyVma => Load { duty: 0.9, ..whole },
            Self::LongVma => Load { duty: 0.9, hold: LONG, ..whole },
            Self::Whole => Load {
                coverage: 1.0,
                duty: 0.9,
                hold: LONG,
                vmas: 1,
                chunk_pages: whole.pages(),
                ..whole
            },
            Self::Chunk => Load { duty: 0.5, ..parts },
            Self::BusyChunk => Load { duty: 0.9, ..parts },
        }
    }
}

/// Those that free anything by themselves; one that waits for locks may never end.
fn measured() -> Vec<Scheme> {
    let measured = |scheme: &&Scheme| **scheme != Scheme::AlwaysBlock;
    Scheme::ALL.iter().filter(measured).copied().collect()
}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        scheme: Vec<Scheme>, Several::any(), measured(), measured(), "what the reaper does about notifiers";
        interest: Vec<Interest>, Several::any(), INTERESTS.to_vec(), INTERESTS.to_vec(),
            "what is of interest to devices, and how busy their locks are";
        victims: u64, Whole(4, 4096), 32, 32, "processes that can be killed, of which the memory of a quarter is needed";
        runs: usize, Whole(1, 100_000), 15, 500, "times that so many are killed, each with a seed of its own";
    }
}

/// A scheme, and what is of interest.
pub(super) struct Beside {
    interest: Interest,
    scheme: Scheme,
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.interest, self.scheme)
    }
}

impl Case for Beside {
    fn place(&self) -> Place {
        Place { table: self.interest.to_string(), column: self.scheme.to_string() }
    }
}

impl Experiment for OomReaper {
    type Parameters = Settings;
    type Case = Beside;

    fn name(&self) -> &'static str {
        "oom-reaper"
    }

    fn about(&self) -> &'static str {
        "Kills processes that devices mirror in part until enough is free, by what the reaper does about \
         notifiers: share that is reaped beside its closed form, time to the first MiB, extra victims."
    }

    fn repeats(&self, _: &Beside) -> Repeats {
        Repeats::Exactly
    }

    fn cases(&self, settings: &Settings) -> Vec<Beside> {
        let schemes = |&interest: &Interest| {
            settings.scheme.iter().map(move |&scheme| Beside { interest, scheme })
        };
        settings.interest.iter().flat_map(schemes).collect()
    }

    fn run(
        &self,
        &Beside { interest, scheme }: &Beside,
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Findings> {
        let mut findings = Findings::default();
        if scheme == Scheme::AlwaysBlock {
            findings.note("It waits for locks, perhaps without end: the explorer has it.");
            return Ok(findings);
        }
        let load = interest.load(settings.victims);
        let mut random = Random(context.seed);
        let mut runs = Vec::new();
        for _ in 0..settings.runs {
            progress::check()?;
            runs.push(load.measure(scheme, random.number()));
        }
        figures(&load, scheme, &runs, &mut findings);
        by_duty(scheme, load, context.seed, &mut findings)?;
        Ok(findings)
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn figures(load: &Load, scheme: Scheme, runs: &[Measured], findings: &mut Findings) {
    let sum = |of: fn(&Measured) -> u64| runs.iter().map(of).sum::<u64>() as f64;
    let share = sum(|run| run.freed) / sum(|run| run.reapable);
    findings.figure("share", share, "", "of the victims' memory that is freed");
    if let Some(share) = load.expected(scheme) {
        findings.figure("share-closed-form", share, "", "the same by the closed form");
    }
    let later = sum(|run| run.freed_later) / sum(|run| run.freed).max(1.0);
    let what = "of what is freed, by a device after the reaper had gone on";
    findings.figure("later-ratio", later, "", what);
    let firsts: Vec<f64> =
        runs.iter().filter_map(|run| Some(run.first_mib?.as_secs_f64())).collect();
    let never = runs.len() - firsts.len();
    findings.count("first-mib-never", never as u64, "", "runs in which no MiB was freed");
    let most = firsts.iter().copied().reduce(f64::max);
    if let (Some(first), Some(most)) = (Estimate::of(firsts), most) {
        let what = "from the first kill to a MiB, in half of the runs that freed one";
        findings.figure("first-mib-p50", first.median, "s", what);
        findings.figure("first-mib-max", most, "s", "the longest of these times");
    }
    let mean = |of: fn(&Measured) -> u64| sum(of) / runs.len() as f64;
    for (name, value, what) in [
        ("victims", mean(|run| run.kills), "killed until enough was free, or none was left"),
        (
            "extra-victims",
            mean(|run| run.extra_victims),
            "of them, that full reaping would have spared",
        ),
        ("attempts", mean(|run| run.attempts), "of the reaper, ten a victim at most"),
        ("busy", mean(|run| run.busy), "starts of an invalidation that failed"),
    ] {
        findings.figure(name, value, "a run", what);
    }
    let took = runs.iter().map(|run| run.took.as_secs_f64()).sum::<f64>() / runs.len() as f64;
    findings.figure(
        "took",
        took,
        "s",
        "from the first kill until enough was free or none was left",
    );
}

/// The share by duty, beside its closed form.
fn by_duty(scheme: Scheme, load: Load, seed: u64, findings: &mut Findings) -> Result<()> {
    let (mut measured, mut closed) = (Vec::new(), Vec::new());
    for tenths in 0..=10 {
        progress::check()?;
        let duty = f64::from(tenths) / 10.0;
        let load = Load { duty, chunk_pages: 1, needed: 1.0, ..load };
        measured.push((duty, load.measure(scheme, seed).share()));
        closed.extend(load.expected(scheme).map(|share| (duty, share)));
    }
    let units = ("duty of the locks", "share");
    let what =
        "share of the victims' memory that is freed, by the share of time in which locks are held";
    findings.series("measured", units, what, measured);
    if !closed.is_empty() {
        findings.series("closed-form", units, what, closed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_form_is_near_what_is_measured() {
        for interest in INTERESTS {
            for scheme in measured() {
                let load = Load { chunk_pages: 1, needed: 1.0, ..interest.load(256) };
                let Some(expected) = load.expected(scheme) else { continue };
                let share = load.measure(scheme, 1).share();
                // 256 processes of 16 VMAs, more than four standard deviations.
                assert!((share - expected).abs() < 0.04, "{interest} {scheme}: {share} {expected}");
            }
        }
    }
}
