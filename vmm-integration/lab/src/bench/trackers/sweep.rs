// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many duplicates there are under uniform churn, beside the closed form for `section-bit`.
//!
//! With S sections of F free granules each, a pass for every cT
//! granules that were freed finds S (1 - exp(-cT/S)) sections marked, and reports all that is free
//! in them. A granule a pass that was freed has to be reported; the rest are duplicates.

use std::sync::Arc;

use anyhow::Result;
use guest_driver::page_alloc::Pfn;
use guest_driver::random::Random;
use guest_driver::reporting::Reporter;

use super::scheme::Scheme;
use super::settings::Settings;
use super::virtual_time::{config, new_guest, settle};
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

/// Passes that are averaged for each point.
const PASSES: u64 = 30;
/// Freed granules a pass, as shares of the number of sections.
const SHARES: [f64; 8] = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

/// Measures reported over freed granules from rare to frequent churn.
///
/// # Errors
/// If the reporter does not come to rest, or the run is to end.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn run(scheme: Scheme, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let mut guest = new_guest(settings)?;
    let sections = guest.sections() as f64;
    let granules = sections * guest.mm.geometry().section_blocks() as f64;
    let mut reporter = Reporter::new(Arc::clone(&guest.mm), config(scheme, settings))?;
    settle(&mut guest, &mut reporter)?;
    // All of memory is taken and then freed at random, so that what is free lies evenly.
    let mut in_use = guest.fill(100);
    let mut random = Random(context.seed);
    let all = in_use.len();
    let mut keep = all * usize::try_from(settings.used)? / 100;
    let mut free_some = |guest: &mut super::guest::Guest, in_use: &mut Vec<Pfn>, left: usize| {
        while in_use.len() > left {
            let pick = random.index(in_use.len());
            guest.free(in_use.swap_remove(pick));
        }
        guest.drain();
    };
    free_some(&mut guest, &mut in_use, keep);
    settle(&mut guest, &mut reporter)?;

    let (mut measured, mut closed) = (Vec::new(), Vec::new());
    let mut worst: f64 = 0.0;
    for (done, share) in SHARES.iter().enumerate() {
        let freed_a_pass = ((sections * share) as usize).max(1);
        keep = keep.max(freed_a_pass + 1);
        let (mut freed, mut reported, mut free) = (0, 0, 0.0);
        for _ in 0..PASSES {
            progress::check()?;
            let left = in_use.len() - freed_a_pass.min(in_use.len());
            freed += in_use.len() - left;
            free_some(&mut guest, &mut in_use, left);
            free += granules - in_use.len() as f64;
            let before = guest.counts.reported;
            // One pass, whatever it takes: mainline's reports a sixteenth of a long list.
            settle(&mut guest, &mut reporter)?;
            reported += guest.counts.reported - before;
            while in_use.len() < keep {
                let Some(block) = guest.allocate() else { break };
                in_use.push(block);
            }
        }
        let a_pass = freed as f64 / PASSES as f64;
        let free_a_section = free / PASSES as f64 / sections;
        let expected = free_a_section * sections * (1.0 - (-a_pass / sections).exp()) / a_pass;
        let ratio = reported as f64 / freed as f64;
        let x = a_pass / sections;
        measured.push((x, ratio));
        closed.push((x, expected));
        worst = worst.max((ratio / expected - 1.0).abs());
        context.progress.at(done as u64 + 1, SHARES.len() as u64);
    }
    let mut findings = Findings::default();
    let units = ("freed granules a section and pass", "reported over freed");
    findings.series("measured", units, "reported granules for each that was freed", measured);
    if scheme.tracker == guest_driver::reporting::TrackerKind::SectionBit {
        findings.series("closed-form", units, "F S (1 - exp(-cT/S)) / cT", closed);
        findings.figure(
            "off-the-closed-form",
            worst * 100.0,
            "%",
            "the worst deviation of the measured curve from the closed form",
        );
    }
    findings.note("Blocks of 2 MiB; after each pass as many are taken again as were freed.");
    Ok(findings)
}
