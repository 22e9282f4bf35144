// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `oom-reaper`: real Linux kills a process that does not exit, and its OOM reaper takes the memory,
//! which a virtual machine, a pin, or nothing else uses.
//!
//! | file | content |
//! |---|---|
//! | [`holder`] | what uses the memory, and what the model says of it |
//! | [`settings`] | the parameters |
//! | [`guest`] | the guest, and one kill in it |
//! | [`trace`] | what its kernel's tracing says |
//! | [`judge`] | figures and the verdict |

mod guest;
mod holder;
mod judge;
mod settings;
mod trace;

use std::fmt;

use anyhow::{Context as _, Result, ensure};

use self::guest::Killing;
use self::holder::Holder;
use self::settings::Settings;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::progress;
use crate::race::reporter::Reporter;
use crate::store::{Findings, Place, VerdictKind};

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    holder: Holder,
    reporter: Reporter,
    kernel: Kernel,
}

impl Victim {
    fn column(&self) -> String {
        format!("{}{}", self.reporter, self.kernel.suffix())
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.holder, self.column())
    }
}

impl Case for Victim {
    fn place(&self) -> Place {
        Place { table: self.holder.to_string(), column: self.column() }
    }
}

/// See the module.
pub(super) struct OomReaper;

impl Experiment for OomReaper {
    type Parameters = Settings;
    type Case = Victim;

    fn name(&self) -> &'static str {
        "oom-reaper"
    }

    fn about(&self) -> &'static str {
        "Runs real Linux out of memory. The process that it kills does not exit, so that only the OOM \
         reaper frees its memory, which a virtual machine of KVM maps, io_uring pins, or nothing else \
         uses. Compares the share that is reaped, the attempts and the other victims with the model, \
         with the reporter on and off. In some cases the reaper must not get the memory."
    }

    fn repeats(&self, _: &Victim) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Victim> {
        let all = [Reporter::None, Reporter::Daemon, Reporter::Late];
        let holders = [
            (Holder::NoNotifier, &all[..]),
            (Holder::Kvm, &all),
            (Holder::KvmHalf, &all[..1]),
            (Holder::Pinned, &all[..1]),
            (Holder::SharedHalf, &all[..1]),
            (Holder::Hugetlb, &all[..1]),
            (Holder::LockHeld, &all[..]),
        ];
        let of = |kernel: Kernel| {
            holders.into_iter().flat_map(move |(holder, reporters)| {
                reporters.iter().map(move |&reporter| Victim { holder, reporter, kernel })
            })
        };
        settings.kernels.iter().copied().flat_map(of).collect()
    }

    fn run(&self, case: &Victim, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => case.kernel.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let &Victim { holder, reporter, .. } = case;
        let killing = Killing::boot(&toolbox, (holder, reporter), settings, context)?;
        let mut all = Vec::new();
        for run in 0..settings.runs {
            progress::check()?;
            context.progress.at(run, settings.runs);
            all.push(killing.kill().with_context(|| format!("kill {}", run + 1))?);
        }
        let mut findings = Findings::default();
        judge::figures(&mut findings, &all);
        if reporter != Reporter::None {
            let reports = killing.device.reports()?;
            ensure!(reports > 0, "nothing was reported");
            findings.count("all-reports", reports, "", "reports that the device served");
            let mib = killing.device.reported_bytes()? >> 20;
            findings.count("reported", mib, "MiB", "in reports, which the host discarded");
        }
        let release = killing.guest.hello().kernel_release.clone();
        let victim_bytes = killing.victim_bytes();
        killing.finish()?;
        findings.verdict = Some(judge::verdict(holder, &all, victim_bytes, &release));
        Ok(findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Assignments, Length, Parameters};

    #[test]
    fn each_kernel_has_all_holders() {
        let of = |set: &[&str]| -> Vec<String> {
            let set = set.iter().map(|&set| set.to_owned()).collect::<Vec<_>>();
            let set = Assignments::parse(&set).unwrap();
            let settings = Settings::read(Length::Quick, &set).unwrap();
            OomReaper.cases(&settings).iter().map(ToString::to_string).collect()
        };
        let newest = of(&[]);
        assert_eq!(newest.first().map(String::as_str), Some("no-notifier-unreported"));
        assert_eq!(newest.last().map(String::as_str), Some("lock-held-late"));
        let both = of(&["kernels=newest,stable"]);
        assert_eq!(both.len(), 2 * newest.len());
        assert!(both.contains(&"kvm-late-stable".to_owned()), "{both:?}");
    }
}
