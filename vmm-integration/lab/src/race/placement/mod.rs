// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `placement`: real Linux whose cpusets and zonelists change under its allocations, and whose reports
//! withhold memory of a node that a task is bound to.
//!
//! | file | content |
//! |---|---|
//! | [`flip`] | a cpuset that changes between nodes |
//! | [`block`] | a movable zone that is empty and populated in turn |
//! | [`bound`] | a task that is bound to a node of which memory is withheld |
//! | [`settings`] | the parameters |
//! | [`cycles`] | figures and the verdict |
//! | [`numa`] | the guest, the planted fault, and what is counted |
//! | [`kernel_log`] | the counts of its kernel's log |
//!
//! A verdict says what was seen and in how many cycles. Nothing here is a bug of Linux: an OOM kill of
//! a bound task may be what the kernel is meant to do.

mod block;
mod bound;
mod cycles;
mod flip;
pub(in crate::race) mod kernel_log;
mod numa;
mod settings;

use std::fmt;

use anyhow::{Result, ensure};

use self::cycles::{counts, verdict};
use self::numa::{MIB, Numa, report};
use self::settings::Settings;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::race::reporter::Reporter;
use crate::store::{Findings, Place, VerdictKind};

/// What changes under an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
enum Scene {
    CpusetFlip,
    /// The same below the low watermark.
    CpusetFlipSlowPath,
    LastBlock,
    BoundNode,
}

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changing {
    scene: Scene,
    reporter: Reporter,
    kernel: Kernel,
}

impl Changing {
    fn column(&self) -> String {
        format!("{}{}", self.reporter, self.kernel.suffix())
    }
}

impl fmt::Display for Changing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.scene, self.column())
    }
}

impl Case for Changing {
    fn place(&self) -> Place {
        Place { table: self.scene.to_string(), column: self.column() }
    }
}

/// See the module.
pub(super) struct Placement;

impl Experiment for Placement {
    type Parameters = Settings;
    type Case = Changing;

    fn name(&self) -> &'static str {
        "placement"
    }

    fn about(&self) -> &'static str {
        "Changes where real Linux may allocate while it allocates, in a guest with two NUMA nodes: a cpuset \
         that flips between them, the only block of a movable zone that goes offline and online, and \
         reports that withhold memory of a node that a task is bound to. Counts OOM kills, failed \
         allocations and tasks without progress, with the reporter on and off. Each case first plants \
         OOM kills and counts them."
    }

    fn repeats(&self, _: &Changing) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Changing> {
        let scenes = [
            (Scene::CpusetFlip, &[Reporter::None, Reporter::Daemon][..]),
            (Scene::CpusetFlipSlowPath, &[Reporter::None]),
            (Scene::LastBlock, &[Reporter::None, Reporter::Daemon, Reporter::Late]),
            (Scene::BoundNode, &[Reporter::None, Reporter::Daemon, Reporter::Late]),
        ];
        let of = |kernel: Kernel| {
            scenes.into_iter().flat_map(move |(scene, reporters)| {
                reporters.iter().map(move |&reporter| Changing { scene, reporter, kernel })
            })
        };
        settings.kernels.iter().copied().flat_map(of).collect()
    }

    fn run(&self, case: &Changing, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => case.kernel.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let &Changing { scene, reporter, .. } = case;
        let nodes = match scene {
            Scene::CpusetFlip | Scene::CpusetFlipSlowPath => flip::NODES,
            Scene::LastBlock => block::NODES,
            Scene::BoundNode => bound::NODES,
        };
        let mut findings = Findings::default();
        context.progress.say("planting OOM kills");
        let mut numa = Numa::boot(&toolbox, nodes, reporter, settings, context)?;
        if scene == Scene::BoundNode {
            numa.shorten_lists()?;
        }
        let control = numa.control()?;
        findings.count("control-oom-kills", control, "", "planted before, each counted as one");
        context.progress.say("");
        let cycles = match scene {
            Scene::BoundNode => bound::run(&mut numa, reporter, settings, context, &mut findings)?,
            Scene::CpusetFlip | Scene::CpusetFlipSlowPath => {
                report(&numa, reporter, settings, &mut findings)?;
                let slow = scene == Scene::CpusetFlipSlowPath;
                flip::run(&numa, slow, settings, context, &mut findings)?
            }
            Scene::LastBlock => {
                let block = block::prepare(&numa)?;
                report(&numa, reporter, settings, &mut findings)?;
                block::run(&numa, block, settings, context, &mut findings)?
            }
        };
        let release = numa.guest.hello().kernel_release.clone();
        if reporter != Reporter::None {
            let reports = numa.device.reports()?;
            ensure!(reports > 0, "nothing was reported");
            findings.count("reports", reports, "", "reports that the device served");
            let mib = numa.device.reported_bytes()? / MIB;
            findings.count("reported", mib, "MiB", "in reports, which the host discarded");
        }
        numa.finish()?;
        counts(&mut findings, &cycles);
        findings.verdict = Some(verdict(&cycles, settings, &release));
        Ok(findings)
    }
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
            Placement.cases(&settings(set)).iter().map(ToString::to_string).collect()
        };
        let newest = of(&[]);
        assert_eq!(newest.first().map(String::as_str), Some("cpuset-flip-unreported"));
        assert_eq!(newest.last().map(String::as_str), Some("bound-node-late"));
        let both = of(&["kernels=newest,stable"]);
        assert_eq!(both.len(), 2 * newest.len());
        assert!(both.contains(&"last-block-reported-stable".to_owned()), "{both:?}");
    }

    #[test]
    fn flipped_tasks_have_every_policy_and_scope() {
        use guest_agent::placement::{Policy, Scope};
        let tasks = flip::tasks(4096);
        for policy in [Policy::Bind, Policy::Interleave] {
            for scope in [Scope::Task, Scope::Mapping] {
                assert!(
                    tasks.iter().any(|(_, task)| task.policy == policy && task.scope == scope),
                    "{policy:?} {scope:?}"
                );
            }
        }
        assert!(tasks.iter().any(|(_, task)| task.policy == Policy::Default));
    }
}
