// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `scale`: what a pass costs and a tracker takes, from small guests to the largest.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, Pfn, PfnRange, ZoneId};
use guest_driver::page_alloc::{ZoneLayout, ZoneType};
use guest_driver::random::Random;
use guest_driver::reporting::{ReportError, ReportSink, Reporter};

use super::trackers::scheme::Scheme;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Several, Sizes, Whole};
use crate::progress;
use crate::size::Size;
use crate::store::{Findings, Place};
use guest_driver::reporting::{Holding, TrackerKind};

/// See the module.
pub(super) struct Scale;

const SECTION_BYTES: u64 = 128 << 20;
const GRANULE_ORDER: u8 = 9;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        tracker: Vec<TrackerKind>, Several::any(), TrackerKind::ALL.to_vec(), TrackerKind::ALL.to_vec(),
            "trackers to compare";
        holding: Vec<Holding>, Several::any(), vec![Holding::Isolate], Holding::ALL.to_vec(),
            "how the guest holds reported pages";
        sizes: Vec<u64>, Sizes(1 << 30, 16 << 40), sizes(&[0, 4, 8, 10, 14]),
            sizes(&[0, 2, 4, 6, 8, 10, 12, 14]), "address spaces of the guests";
        populated: u64, Bytes(1 << 30, 1 << 38), 4 << 30, 32 << 30,
            "memory of the guest, in sections spread evenly over the address space";
        passes: usize, Whole(1, 10_000), 9, 51, "passes of each kind, of which the median counts";
    }
}

/// Powers of two, in GiB.
fn sizes(powers: &[u32]) -> Vec<u64> {
    powers.iter().map(|power| 1 << (30 + power)).collect()
}

impl Case for Scheme {
    fn place(&self) -> Place {
        Place { table: self.holding.to_string(), column: self.tracker.to_string() }
    }
}

/// Name, unit and meaning of what is measured.
const CURVES: [(&str, &str, &str); 4] = [
    ("quiet", "ns", "to find that there is nothing to report"),
    ("single", "ns", "a pass that finds and reports a single granule"),
    ("busy", "ns/granule", "a pass that reports a quarter of memory"),
    ("tracker-bytes", "B", "of the tracker"),
];

impl Experiment for Scale {
    type Parameters = Settings;
    type Case = Scheme;

    fn name(&self) -> &'static str {
        "scale"
    }

    fn about(&self) -> &'static str {
        "Measures the time of a pass and the memory of a tracker from 1 GiB to 16 TiB of address space, \
         in a quiet guest, in one that has freed a single granule, and in a busy one."
    }

    fn repeats(&self, _: &Scheme) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, settings: &Settings) -> Vec<Scheme> {
        Scheme::of(&settings.tracker, &settings.holding)
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn run(&self, scheme: &Scheme, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let sizes = &settings.sizes;
        let mut findings = Findings::default();
        let mut curves: [Vec<(f64, f64)>; 4] = Default::default();
        for (done, &bytes) in sizes.iter().enumerate() {
            progress::check()?;
            context.progress.say(&Size(bytes).to_string());
            let measured = measure(*scheme, bytes, settings, context.seed)?;
            for (((name, unit, what), points), value) in
                CURVES.iter().zip(&mut curves).zip(measured)
            {
                findings.figure(&format!("{name}-{}", Size(bytes)), value, unit, what);
                points.push((bytes as f64 / f64::from(1 << 30), value));
            }
            context.progress.at(done as u64 + 1, sizes.len() as u64);
        }
        for ((name, unit, what), points) in CURVES.into_iter().zip(curves) {
            findings.series(name, ("GiB", unit), what, points);
        }
        findings.note(
            "The host answers at once; times are of the reporter alone and vary with the machine.",
        );
        Ok(findings)
    }
}

/// A host that has every page back at once.
struct Instantly;

impl ReportSink for Instantly {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        black_box(ranges);
        Ok(())
    }

    /// None was ever late.
    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

/// A guest with `bytes` of address space.
fn guest(bytes: u64, populated: u64) -> Result<Mm> {
    let sections = usize::try_from(bytes / SECTION_BYTES)?;
    let there = usize::try_from(populated.min(bytes) / SECTION_BYTES)?;
    let every = sections / there;
    let layout = Layout {
        sections,
        zones: vec![ZoneLayout {
            node: 0,
            kind: ZoneType::Movable,
            sections: (0..there).map(|n| n * every..n * every + 1).collect(),
        }],
        ..Layout::flat(Geometry::LINUX, 1, 0)
    };
    Ok(Mm::new(&layout))
}

/// Nanoseconds of a pass over a quiet guest, of a pass for one granule, of a pass for many a granule,
/// and bytes of the tracker.
#[allow(clippy::cast_precision_loss)] // figures for people
fn measure(scheme: Scheme, bytes: u64, settings: &Settings, seed: u64) -> Result<[f64; 4]> {
    let mm = Arc::new(guest(bytes, settings.populated)?);
    let mut reporter = Reporter::new(Arc::clone(&mm), scheme.config())?;
    let settle = |reporter: &mut Reporter| {
        let mut pages = 0;
        while reporter.has_work() {
            pages += reporter.pass(&mut Instantly).pages;
        }
        pages
    };
    settle(&mut reporter);
    let passes = settings.passes;
    let time = |of: &mut dyn FnMut() -> u64| {
        let start = Instant::now();
        let count = of().max(1);
        start.elapsed().as_secs_f64() * 1e9 / count as f64
    };
    let quiet = median((0..passes).map(|_| {
        time(&mut || {
            for _ in 0..16 {
                black_box(reporter.pass(&mut Instantly).pages);
            }
            16
        })
    }));
    let mut random = Random(seed);
    let mut blocks = Vec::new();
    let half = mm.zone(ZoneId(0)).managed_pages() >> (GRANULE_ORDER + 1);
    let fill = |blocks: &mut Vec<Pfn>| {
        while (blocks.len() as u64) < half
            && let Ok(pfn) = mm.alloc(0, AllocRequest::movable(GRANULE_ORDER))
        {
            blocks.push(pfn);
        }
    };
    let mut free = |blocks: &mut Vec<Pfn>, count: usize| {
        for _ in 0..count {
            let pick = random.index(blocks.len());
            mm.free(0, blocks.swap_remove(pick));
        }
        mm.drain_all(ZoneId(0));
    };
    fill(&mut blocks);
    settle(&mut reporter);
    let mut run = |count: usize| {
        let times = (0..passes).map(|_| {
            free(&mut blocks, count);
            let took = time(&mut || {
                let pages = settle(&mut reporter);
                if count == 1 { 1 } else { pages >> GRANULE_ORDER }
            });
            fill(&mut blocks);
            took
        });
        median(times)
    };
    let single = run(1);
    let busy = run(usize::try_from(half / 2)?);
    Ok([quiet, single, busy, reporter.tracker_bytes() as f64])
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_spread_over_all_of_the_address_space() {
        let mm = guest(16 << 40, 1 << 30).unwrap();
        let there: Vec<usize> = (0..mm.section_count()).filter(|&at| mm.is_online(at)).collect();
        assert_eq!(there.len(), 8);
        assert_eq!(there[7], 7 * 131_072 / 8);
        assert_eq!(mm.zone(ZoneId(0)).managed_pages(), 1 << 18);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!(median(std::iter::empty()).is_nan());
    }
}
