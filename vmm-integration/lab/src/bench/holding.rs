// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `holding`: the whole cost of holding a block, both ways in turns.
//!
//! Isolating is start, test and undo; pulling is taking off the list and putting back. Half of either
//! says little: what one does at the beginning the other may do at the end.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, IsolateMode, Layout, Mm, Pfn, PfnRange, ZoneId,
};
use guest_driver::reporting::{Config, Holding, TrackerKind, hold_while};

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::parameters::parameters;
use crate::parameters::takes::Whole;
use crate::progress;
use crate::store::Findings;

/// 512 MiB.
const SECTIONS: usize = 4;

/// See the module.
pub(super) struct HoldingCost;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        rounds: usize, Whole(1, 100_000), 201, 2001, "rounds, of which the median counts";
    }
}

/// The order of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Block {
    /// A pageblock.
    #[strum(to_string = "order-9")]
    Order9,
    /// Two pageblocks, the largest buddy.
    #[strum(to_string = "order-10")]
    Order10,
}

impl Block {
    fn order(self) -> u8 {
        match self {
            Self::Order9 => 9,
            Self::Order10 => 10,
        }
    }
}

impl Case for Block {}

impl Experiment for HoldingCost {
    type Parameters = Settings;
    type Case = Block;

    fn name(&self) -> &'static str {
        "holding"
    }

    fn about(&self) -> &'static str {
        "Measures the time to hold and release one free block: isolated (start, test, undo), pulled \
         (off the list and put back), and isolated after it was allocated (a lost race)."
    }

    fn repeats(&self, _: &Block) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, _: &Settings) -> Vec<Block> {
        vec![Block::Order9, Block::Order10]
    }

    fn run(&self, case: &Block, settings: &Settings, _: &Context<'_>) -> Result<Findings> {
        let Measured { isolated, pulled, lost } = measure(case.order(), settings.rounds)?;
        let mut findings = Findings::default();
        for (name, times, what) in [
            ("isolate", isolated, "to find a free block, isolate, test, and undo"),
            ("pull", pulled, "to find a free block, pull it off its list, and put it back"),
            ("lost-race", lost, "to isolate a block in use, find it so, and undo"),
        ] {
            findings.figure(&format!("{name}-p50"), median(times), "ns", what);
        }
        findings.note(
            "A block at a time, one thread, the ways in turns; the time of a round over its blocks.",
        );
        Ok(findings)
    }
}

/// Nanoseconds a block, a value a round.
struct Measured {
    isolated: Vec<f64>,
    pulled: Vec<f64>,
    lost: Vec<f64>,
}

fn measure(order: u8, rounds: usize) -> Result<Measured> {
    let mm = Mm::new(&Layout::flat(Geometry::LINUX, 1, SECTIONS));
    let mut used = Vec::new();
    while let Ok(block) = mm.alloc(0, AllocRequest::movable(order)) {
        used.push(block);
    }
    used.sort_unstable();
    // Every other one, so that none merges.
    let free: Vec<Pfn> = used.iter().copied().step_by(2).collect();
    used.retain(|block| free.binary_search(block).is_err());
    free.iter().for_each(|&block| mm.free(0, block));
    mm.drain_all(ZoneId(0));
    let hold = |holding| {
        let config = Config {
            tracker: TrackerKind::SectionBitmap,
            holding,
            granule_order: 9,
            ..Config::DEFAULT
        };
        let held = |&&block: &&Pfn| {
            hold_while(&mm, &config, (block, order), |range| {
                black_box(range);
            })
        };
        free.iter().filter(held).count()
    };
    let lose = || {
        let lost = |&&block: &&Pfn| {
            let range = PfnRange::block(block, order);
            let lost = mm.start_isolate_page_range(range, IsolateMode::Report).is_ok()
                && mm.test_pages_isolated(range).is_err();
            mm.undo_isolate_page_range(range, None);
            lost
        };
        used.iter().filter(lost).count()
    };
    let mut measured = Measured { isolated: Vec::new(), pulled: Vec::new(), lost: Vec::new() };
    for _ in 0..rounds {
        progress::check()?;
        measured.isolated.push(time(free.len(), || hold(Holding::Isolate))?);
        measured.pulled.push(time(free.len(), || hold(Holding::Pull))?);
        measured.lost.push(time(used.len(), lose)?);
    }
    mm.validate()?;
    Ok(measured)
}

/// Nanoseconds of each of `blocks`, if all of them were done.
#[allow(clippy::cast_precision_loss)] // a time for people
fn time(blocks: usize, round: impl FnOnce() -> usize) -> Result<f64> {
    let start = Instant::now();
    let done = round();
    let ns = start.elapsed().as_secs_f64() * 1e9;
    ensure!(done == blocks, "{done} of {blocks} blocks");
    Ok(ns / blocks as f64)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_held_in_both_ways() {
        for case in [Block::Order9, Block::Order10] {
            assert_eq!(case.to_string(), format!("order-{}", case.order()));
            let Measured { isolated, pulled, lost } = measure(case.order(), 3).unwrap();
            assert_eq!([isolated.len(), pulled.len(), lost.len()], [3; 3]);
            assert!(isolated.iter().chain(&pulled).chain(&lost).all(|ns| *ns > 0.0));
        }
    }
}
