// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Figures and the verdict.

use anyhow::{Context, Result};
use vmm_integration::windows::Made;
use vmm_integration::windows::step::Steps;
use vmm_integration::windows::window::{Variant, Window, isolated_half_is_handed_out};

use crate::store::{Findings, Verdict, VerdictKind};

/// The blocks whose pull is measured, as the module names them.
const PULLED: [&str; 5] = ["order-7", "order-8", "order-9", "order-9-isolated", "order-10"];

/// The figures and the verdict on all runs of each variant.
pub(super) fn findings(
    window: Window,
    release: &str,
    all: &[(&Variant, Vec<Made>)],
) -> Result<Findings> {
    let mut findings = Findings::default();
    let (mut wrong, mut seen) = (0, Vec::new());
    for (variant, made) in all {
        let name = variant.name;
        let shown = count(made, |steps| window.is_shown(steps))?;
        let runs = made.len();
        findings.count(&format!("{name}-shown"), to_u64(shown), "", variant.what);
        findings.count(&format!("{name}-runs"), to_u64(runs), "", "runs of it");
        let disturbed: u32 = made.iter().map(|made| made.disturbed).sum();
        findings.count(
            &format!("{name}-disturbed"),
            disturbed.into(),
            "",
            "runs made again, since something else in the guest asked for a pass",
        );
        wrong += if variant.control { shown } else { runs - shown };
        let mut text = format!("{name}: {shown} of {runs}");
        match window {
            Window::HalfIsolated => {
                let out = count(made, isolated_half_is_handed_out)?;
                let what = "runs in which a block with an isolated half was allocated";
                findings.count(&format!("{name}-handed-out"), to_u64(out), "", what);
                text += &format!(" put back as a whole on one list, {out} handed out");
            }
            Window::ContigOfIsolated => {}
            Window::PullCost => costs(&mut findings, made)?,
            _ => points(&mut findings, name, made)?,
        }
        seen.push(text);
        for (run, made) in made.iter().enumerate() {
            findings.note(format!("{name}, run {}:\n{}", run + 1, made.steps));
        }
    }
    let kind = if wrong == 0 { VerdictKind::Shown } else { VerdictKind::NotShown };
    let text = format!("Linux {release}: {}", seen.join("; "));
    findings.verdict = Some(Verdict { kind, text });
    Ok(findings)
}

/// The runs of which something is true.
fn count(made: &[Made], of: impl Fn(&Steps) -> Result<bool>) -> Result<usize> {
    let each = made.iter().map(|made| of(&made.steps)).collect::<Result<Vec<_>>>()?;
    Ok(each.into_iter().filter(|it| *it).count())
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn real(number: u64) -> f64 {
    number as f64
}

/// Blocks that are reported in the quiet guest, run by run.
fn points(findings: &mut Findings, name: &str, made: &[Made]) -> Result<()> {
    let each = made.iter().enumerate().map(|(run, made)| {
        let reported: u64 = made.steps.at("quiet")?.number("reported")?;
        Ok((real(to_u64(run + 1)), real(reported)))
    });
    let points = each.collect::<Result<Vec<_>>>()?;
    let what = "blocks reported in the quiet guest";
    findings.series(&format!("{name}-reported"), ("run", "blocks"), what, points);
    Ok(())
}

/// Times of pulls and of putting back: the median of the runs' medians.
fn costs(findings: &mut Findings, made: &[Made]) -> Result<()> {
    let of = |block: &str, key: &str| -> Result<f64> {
        let each = made.iter().map(|made| made.steps.at(block)?.number::<u64>(key));
        let mut each = each.collect::<Result<Vec<_>>>()?;
        each.sort_unstable();
        Ok(real(each.get(each.len() / 2).copied().context("no run")?))
    };
    for block in PULLED {
        let figures = [("pull-ns", "to pull it"), ("put-back-ns", "to put it back")];
        for (key, what) in figures {
            findings.figure(&format!("{block}-{key}"), of(block, key)?, "ns", what);
        }
    }
    let look = of("order-9", "look-at-512-ns")?;
    findings.figure("look-at-512-ns", look, "ns", "a loop of its own over 512 pages");
    for (block, name) in [("order-9", "order-9-share"), ("order-10", "order-10-share")] {
        let pull = of(block, "pull-ns")?;
        let held = pull + of(block, "put-back-ns")?;
        let share = (pull - of("order-9-isolated", "pull-ns")?) / held;
        let what = "of pull and putting back is the search of the pageblocks";
        findings.figure(name, 100.0 * share, "%", what);
    }
    Ok(())
}
