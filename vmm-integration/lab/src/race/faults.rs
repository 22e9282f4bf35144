// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The faults of the backend as experiments.

use std::fmt;

use anyhow::{Result, bail};

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::faults::outcome::{Judgement, Met};
use crate::faults::plan::{Fault, FaultKind, FaultPlan, Injector};
use crate::faults::{self, inject};
use crate::guest::toolbox;
use crate::store::{Findings, VerdictKind};

/// The outcome of a fault, as findings.
///
/// # Errors
/// If memory was lost, or the guest hung, and neither is documented.
fn judged(kind: FaultKind, met: &Met) -> Result<Findings> {
    let verdict = match met.judge(kind) {
        Judgement::Survived => VerdictKind::Survived,
        Judgement::AsDocumented => VerdictKind::AsDocumented,
        Judgement::Failed => bail!("{kind}: {met}"),
    };
    let mut findings = Findings::verdict(verdict, met.to_string());
    findings.count("faults", met.faults, "", "times that the fault happened");
    findings.count("lost", met.lost_bytes, "bytes", "of memory in use that were damaged");
    Ok(findings)
}

/// A fault of this kind, if no plan gives another.
fn usual(kind: FaultKind) -> Fault {
    match kind {
        // Once is easily missed: the guest need not reuse the pages in that moment.
        FaultKind::EarlyAck => Fault { times: 0, ms: Some(20), ..Fault::new(kind) },
        _ => Fault { after: 2, ..Fault::new(kind) },
    }
}

impl Case for FaultKind {}

/// Every kind of fault against the model.
pub(super) struct FaultsModel;

impl Experiment for FaultsModel {
    type Parameters = ();
    type Case = FaultKind;

    fn name(&self) -> &'static str {
        "faults-model"
    }

    fn about(&self) -> &'static str {
        "Injects every kind of fault of the backend, with the model or a bare driver as the guest."
    }

    fn repeats(&self, _: &FaultKind) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, (): &()) -> Vec<FaultKind> {
        FaultKind::ALL.into()
    }

    fn run(&self, kind: &FaultKind, (): &(), context: &Context<'_>) -> Result<Findings> {
        run_on_model(&usual(*kind), context)
    }
}

fn run_on_model(fault: &Fault, context: &Context<'_>) -> Result<Findings> {
    if fault.kind.injector() == Injector::Daemon
        && let Err(why) = inject::strace()
    {
        return Ok(Findings::verdict(VerdictKind::NotTestable, format!("{why:#}")));
    }
    judged(fault.kind, &faults::model::meet(fault, &context.daemon()?)?)
}

/// The kinds of fault that Linux can meet.
pub(super) struct FaultsLinux;

impl Experiment for FaultsLinux {
    type Parameters = ();
    type Case = FaultKind;

    fn name(&self) -> &'static str {
        "faults-linux"
    }

    fn about(&self) -> &'static str {
        "Injects faults of the device and of the daemon, with real Linux as the guest."
    }

    fn repeats(&self, _: &FaultKind) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, (): &()) -> Vec<FaultKind> {
        FaultKind::ALL.into_iter().filter(|kind| faults::linux::meets(*kind)).collect()
    }

    fn run(&self, kind: &FaultKind, (): &(), context: &Context<'_>) -> Result<Findings> {
        match toolbox()? {
            Ok(toolbox) => {
                judged(*kind, &faults::linux::meet(&usual(*kind), &toolbox, &context.daemon()?)?)
            }
            Err(why) => Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        }
    }
}

/// The faults of a plan, each a case.
pub struct Planned(FaultPlan);

impl Planned {
    /// An experiment of these faults.
    pub fn new(plan: FaultPlan) -> Self {
        Self(plan)
    }
}

/// A fault of a plan with its number there, from 1.
pub struct Numbered {
    number: usize,
    fault: Fault,
}

impl fmt::Display for Numbered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.fault.kind)
    }
}

impl Case for Numbered {}

impl Experiment for Planned {
    type Parameters = ();
    type Case = Numbered;

    fn name(&self) -> &'static str {
        "faults"
    }

    fn about(&self) -> &'static str {
        "Injects the faults of a plan."
    }

    fn repeats(&self, _: &Numbered) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, (): &()) -> Vec<Numbered> {
        let faults = (1..).zip(self.0.faults.iter().cloned());
        faults.map(|(number, fault)| Numbered { number, fault }).collect()
    }

    fn again(&self, case: &Numbered) -> Option<String> {
        Some(format!("--fault {}", case.fault))
    }

    fn run(&self, case: &Numbered, (): &(), context: &Context<'_>) -> Result<Findings> {
        run_on_model(&case.fault, context)
    }
}
