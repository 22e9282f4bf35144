// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory blocks that go offline and online in a real guest whose kernel reports by isolation: the
//! module of this project in place of mainline, with each tracker and both ways to hold.

use std::fmt;

use anyhow::{Result, ensure};
use guest_agent::race::{LOAD, OFFLINE, ONLINE, RaceReport, UNLOAD};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};

use super::linux::LinuxRace;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};
use crate::progress::{Interrupted, interrupted};
use crate::scheme::KernelScheme;
use crate::store::{Findings, Verdict, VerdictKind};

/// See the module.
pub(super) struct KernelRace;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        cycles: u64, Whole(1, 100_000_000), 200, 10_000, "times that a block goes offline and online";
        pause: u64, Whole(100, 600_000), 2000, 5000,
            "pause between two reloads of the module, in milliseconds";
        cpus: u32, Whole(1, 64), 2, 2, "CPUs of the guest";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest], vec![Kernel::Newest],
            "kernels: the newest, that of Debian's stable release, and one that checks itself \
             (cargo xtask kernel --debug)";
    }
}

/// A scheme in a kernel.
pub(super) struct InKernel {
    scheme: KernelScheme,
    kernel: Kernel,
}

impl InKernel {
    /// Parameters of the module; none for mainline.
    fn params(&self) -> Option<String> {
        let params = self.scheme.params()?;
        Some(match self.kernel {
            // Its compiler has put other code where the module looks for the hook.
            Kernel::Debug => format!("{params} hook=free-paths"),
            Kernel::Newest | Kernel::Stable => params,
        })
    }
}

impl fmt::Display for InKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.scheme, self.kernel.suffix())
    }
}

impl Case for InKernel {}

impl Experiment for KernelRace {
    type Parameters = Settings;
    type Case = InKernel;

    fn name(&self) -> &'static str {
        "race-kernel"
    }

    fn about(&self) -> &'static str {
        "Races memory offlining with reports in real Linux, by mainline and by the module that isolates: \
         blocks go offline and online while memory is used, gigantic pages come and go, and the module is \
         unloaded and loaded. All that was written is verified."
    }

    fn repeats(&self, _: &InKernel) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<InKernel> {
        let of = |&kernel| KernelScheme::ALL.map(|scheme| InKernel { scheme, kernel });
        settings.kernels.iter().flat_map(of).collect()
    }

    #[allow(clippy::cast_precision_loss)] // figures for people
    fn run(&self, case: &InKernel, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        let toolbox = match toolbox()? {
            Ok(toolbox) => case.kernel.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let mut race = LinuxRace::new(context.seed, settings.cycles);
        race.cpus = settings.cpus;
        race.isolation = case.params();
        race.pause_ms = settings.pause;
        let daemon = DaemonProcess::spawn(&context.daemon()?, &DaemonOptions::default())?;
        let raced = race.run(&toolbox, &daemon.socket(), &mut |report: &RaceReport| {
            context.progress.at(report.cycles(), race.cycles);
            !interrupted()
        })?;
        if interrupted() {
            return Err(Interrupted.into());
        }
        let report = &raced.report;
        ensure!(report.migrated_pages > 0, "no block that was cycled was in use: {report:?}");
        findings.count("cycles", report.cycles(), "", "blocks that went offline and came back");
        findings.figure("rate", raced.cycles_per_second(), "1/s", "cycles a second");
        let (loads, unloads) = (report.operation(LOAD), report.operation(UNLOAD));
        findings.count("reloads", loads.ok().min(unloads.ok()), "", "of the module meanwhile");
        for name in [OFFLINE, ONLINE, LOAD, UNLOAD] {
            let operation = report.operation(name);
            for (outcome, times) in &operation.outcomes {
                let what = format!("{name}: ended with {outcome}");
                findings.count(&format!("{name}-{outcome}"), *times, "", &what);
            }
            let longest = operation.longest_us as f64 / 1000.0;
            findings.figure(
                &format!("{name}-longest"),
                longest,
                "ms",
                &format!("the longest {name}"),
            );
        }
        let checked = report.verified_bytes as f64 / f64::from(1 << 20);
        findings.figure("checked", checked, "MiB", "compared, all of it right");
        findings.count("moved", report.migrated_pages, "pages", "moved out of the way");
        findings.note(raced.to_string());
        let text = format!(
            "{} cycles in Linux {} without damage, complaint or hang",
            report.cycles(),
            raced.kernel
        );
        findings.verdict = Some(Verdict { kind: VerdictKind::Survived, text });
        Ok(findings)
    }
}
