// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `shared-page-tables`: processes of a real guest that map one file of hugetlbfs, with page tables that
//! they share and with their own, side by side.
//!
//! | file | content |
//! |---|---|
//! | [`settings`] | the parameters |
//! | [`loads`] | what the processes do, and in which order |
//! | [`machine`] | the guest, its pool of huge pages, and the planted faults |
//! | [`figures`] | rates, ratios, latencies |
//! | [`waits`] | what faults, forks and punches waited for |
//!
//! A verdict says what was seen. What processes wait for is compared with the schemes of the model
//! (`guest_driver::hugetlb`).

mod figures;
mod loads;
mod machine;
mod settings;
mod waits;

use std::fmt;

use anyhow::{Result, ensure};

use self::figures::add_figures;
use self::loads::{Measured, run_all};
use self::machine::Machine;
use self::settings::{Reports, Settings};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::store::{Findings, Place, Verdict, VerdictKind};

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    reports: Reports,
    kernel: Kernel,
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.reports, self.kernel.suffix())
    }
}

impl Case for Mapped {
    fn place(&self) -> Place {
        Place { table: String::new(), column: self.to_string() }
    }
}

/// See the module.
pub(super) struct SharedPageTables;

impl Experiment for SharedPageTables {
    type Parameters = Settings;
    type Case = Mapped;

    fn name(&self) -> &'static str {
        "shared-page-tables"
    }

    fn about(&self) -> &'static str {
        "Maps one file of hugetlbfs in several processes of a real Linux guest, at a multiple of 1 GiB so that \
         they share its page table, and beside it so that they do not. Faults it in against fork, hole \
         punch and unsharing, alone and together, with free page reports and without. Checks contents, \
         the pool of huge pages and the kernel's log, and says what faults wait for. Each case first \
         plants faults and finds them."
    }

    fn repeats(&self, _: &Mapped) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Mapped> {
        let all = [Reports::None, Reports::Surplus, Reports::Pool];
        let of = |&kernel: &Kernel| all.map(|reports| Mapped { reports, kernel });
        settings.kernels.iter().flat_map(of).collect()
    }

    fn run(&self, case: &Mapped, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => case.kernel.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let mut machine = Machine::boot(&toolbox, case.reports, settings, context)?;
        let mut findings = Findings::default();
        context.progress.say("planting faults");
        let planted = machine.control()?;
        findings.count("planted", planted, "", "faults planted before, each found");
        context.progress.say("");
        machine.begin(&mut findings)?;
        let measured = run_all(&machine, settings, context)?;
        let complaints = machine.complaints()?;
        add_figures(&measured, &mut findings);
        waits::figures(&measured, &mut findings);
        if case.reports != Reports::None {
            let (reports, mib) = machine.reported()?;
            findings.count("reports", reports, "", "reports during the runs");
            findings.count("reported", mib, "MiB", "in them, which the host discarded");
            // Of the pool nothing but other memory of the guest is free.
            ensure!(reports > 0 || case.reports == Reports::Pool, "nothing was reported");
        }
        let release = machine.release();
        machine.finish()?;
        findings.verdict = Some(verdict(&measured, &complaints, &release));
        Ok(findings)
    }
}

/// What was seen.
fn verdict(measured: &Measured, complaints: &[String], release: &str) -> Verdict {
    let mut found = measured.found.clone();
    found.extend(complaints.iter().map(|line| format!("the kernel's log says {line:?}")));
    if !found.is_empty() {
        let text = format!("Linux {release}: {}", found.join("; "));
        return Verdict { kind: VerdictKind::Lost, text };
    }
    let shared = measured.sharing.unwrap_or_default();
    let text = format!(
        "Linux {release}: a second process touches {} pages with {} fault where it shares the page table, \
         and with {} faults once it has unmapped one; {} pages checked, none wrong; the pool balances, no \
         process is stuck, nothing in the kernel's log; {}",
        shared.pages,
        shared.second,
        shared.after_unmap,
        measured.checks(),
        waits::scheme(measured)
    );
    Verdict { kind: VerdictKind::Survived, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Assignments, Length, Parameters};

    fn settings(set: &[&str]) -> Settings {
        let set = set.iter().map(|&set| set.to_owned()).collect::<Vec<_>>();
        Settings::read(Length::Quick, &Assignments::parse(&set).unwrap()).unwrap()
    }

    #[test]
    fn each_kernel_has_all_cases() {
        let of = |set: &[&str]| -> Vec<String> {
            SharedPageTables.cases(&settings(set)).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&[]), ["unreported", "reported", "reported-pool"]);
        let stable = ["unreported-stable", "reported-stable", "reported-pool-stable"];
        assert_eq!(of(&["kernels=stable"]), stable);
    }

    #[test]
    fn verdict_names_what_a_check_found() {
        let mut measured = Measured::default();
        assert_eq!(verdict(&measured, &[], "7.3").kind, VerdictKind::Survived);
        measured.found.push("Writer, 2 times: page 5 is Stale".into());
        let lost = verdict(&measured, &["BUG: bad".into()], "7.3");
        assert_eq!(lost.kind, VerdictKind::Lost);
        let expected =
            "Linux 7.3: Writer, 2 times: page 5 is Stale; the kernel's log says \"BUG: bad\"";
        assert_eq!(lost.text, expected);
    }
}
