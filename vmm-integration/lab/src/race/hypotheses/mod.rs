// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `hypotheses`: reported bugs of free page reporting, and hypotheses from reading the source. A case
//! tries one of them, and its verdict is the observation of that run.
//!
//! | file | content |
//! |---|---|
//! | [`list`] | the hypotheses, and how each is tried |
//! | [`steps`] | the model, step by step on one thread |
//! | [`linux`] | real Linux |
//! | [`watched`] | a real Linux beside a device that remembers each report |
//! | [`devices`] | the daemon, and faults of the device |
//! | [`seen`] | an observation, and the verdict on several |
//!
//! The experiment `mainline` makes the windows of some of them in an unmodified kernel.
//!
//! Others run a configuration of the model with real threads until it goes wrong. An observation in the
//! model is a finding about the model. Nothing here is a bug of Linux unless real Linux shows it.

mod devices;
mod linux;
mod list;
mod seen;
mod steps;
mod watched;

use anyhow::{Context as _, Result};

use self::list::{HYPOTHESES, How, Hypothesis};
use self::seen::{Seen, assertion, verdict};
use crate::experiment::{Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};
use crate::progress;
use crate::store::{Findings, VerdictKind};
use vmm_integration::vmm::qemu::Toolbox;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        runs: u64, Whole(1, 10_000_000), 3000, 200_000,
            "runs of the model with real threads, each with a seed of its own, until one shows it";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest],
            vec![Kernel::Newest, Kernel::Stable],
            "kernels to try: the newest, and that of Debian's stable release";
    }
}

/// See the module.
pub(super) struct Hypotheses;

impl Experiment for Hypotheses {
    type Parameters = Settings;
    type Case = &'static Hypothesis;

    fn name(&self) -> &'static str {
        "hypotheses"
    }

    fn about(&self) -> &'static str {
        "Tries reported bugs and hypotheses about free page reporting, in real Linux where that can show \
         them, and in the model. Each verdict is shown, not shown, or not testable here. `cargo explore` \
         tries every schedule of the model that a scheduler reaches."
    }

    fn repeats(&self, case: &&'static Hypothesis) -> Repeats {
        if case.how.iter().all(|how| matches!(how, How::Steps(_))) {
            Repeats::Exactly
        } else {
            Repeats::ButForTheGuest
        }
    }

    fn cases(&self, _: &Settings) -> Vec<&'static Hypothesis> {
        HYPOTHESES.iter().collect()
    }

    fn run(
        &self,
        case: &&'static Hypothesis,
        settings: &Settings,
        context: &Context<'_>,
    ) -> Result<Findings> {
        let mut findings = Findings::default();
        findings.note(case.what);
        let mut all = Vec::new();
        for how in case.how {
            progress::check()?;
            all.extend(tried(how, settings, context, &mut findings)?);
        }
        findings.verdict = verdict(all);
        Ok(findings)
    }
}

/// Tries one way, in Linux once with each kernel.
fn tried(
    how: &How,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Vec<Seen>> {
    Ok(vec![match how {
        How::Threads(name) => model(name, settings.runs, context)?,
        How::Steps(run) => {
            let (kind, text) = run()?;
            (kind, format!("the model, step by step: {text}"))
        }
        How::Linux(run) => return in_each(settings, |toolbox| run(toolbox, findings)),
        How::Fault(kind) => {
            let toolbox = toolbox()?.ok();
            devices::fault(*kind, &context.daemon()?, toolbox.as_ref())?
        }
        How::Daemon(run) => run(&context.daemon()?)?,
        How::DaemonLinux(run) => {
            let daemon = context.daemon()?;
            return in_each(settings, |toolbox| run(toolbox, &daemon));
        }
        How::Not(why) => (VerdictKind::NotTestable, (*why).to_owned()),
    }])
}

/// Runs something with each kernel.
fn in_each(
    settings: &Settings,
    mut run: impl FnMut(&Toolbox) -> Result<Seen>,
) -> Result<Vec<Seen>> {
    let toolbox = match toolbox()? {
        Ok(toolbox) => toolbox,
        Err(why) => return Ok(vec![(VerdictKind::NotTestable, why)]),
    };
    settings.kernels.iter().map(|kernel| run(&kernel.of(&toolbox)?)).collect()
}

/// Runs a configuration of the model until it goes wrong.
fn model(name: &str, runs: u64, context: &Context<'_>) -> Result<Seen> {
    let configuration =
        list::configuration(name).with_context(|| format!("unknown configuration {name}"))?;
    let seeds = context.seed..context.seed.saturating_add(runs);
    for (done, seed) in (0..).zip(seeds) {
        context.progress.at(done, runs);
        progress::check()?;
        let violation = match assertion(|| configuration.run(seed)) {
            Ok(Ok(())) => continue,
            Ok(Err(violation)) => violation.to_string(),
            Err(failed) => failed,
        };
        let text = format!("the model with real threads shows it in run {}: {violation}", done + 1);
        return Ok((VerdictKind::Shown, text));
    }
    let text = format!(
        "not in {runs} runs of the model with real threads; a scheduler finds it: cargo explore \
         --configuration {name}"
    );
    Ok((VerdictKind::NotShown, text))
}
