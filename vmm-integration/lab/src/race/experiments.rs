// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Races and faults as experiments of the lab.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};

use super::{agree, offlining, part4};
use crate::experiment::{Context, Experiment, Repeats};
use crate::faults::outcome::{Judgement, Met};
use crate::faults::plan::{Fault, FaultKind, FaultPlan, Injector};
use crate::faults::{self, inject};
use crate::parameters::{Parameter, Settings};
use crate::store::{Findings, Verdict, VerdictKind};
use vmm_integration::vmm::qemu::{self, Toolbox};

/// All races.
pub fn experiments() -> &'static [&'static dyn Experiment] {
    &[&offlining::Offlining, &FaultsModel, &FaultsLinux, &part4::Part4, &agree::Agreement]
}

/// What Linux is booted with, or why there is none here.
pub(super) fn toolbox() -> Result<Result<Toolbox, String>> {
    match qemu::available() {
        Ok(toolbox) => Ok(Ok(toolbox)),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => Ok(Err(format!("there is no Linux guest here: {error:#}"))),
    }
}

#[allow(clippy::cast_precision_loss)] // figures for people
fn real(number: u64) -> f64 {
    number as f64
}

/// What came of a fault, as findings.
///
/// # Errors
/// If something was lost or hung that should not have.
fn judged(kind: FaultKind, met: &Met) -> Result<Findings> {
    let mut findings = Findings::default();
    findings.figure("faults", real(met.faults), "", "times that the fault happened");
    findings.figure("lost", real(met.lost_bytes), "bytes", "of memory in use that were damaged");
    let verdict = match met.judge(kind) {
        Judgement::Survived => VerdictKind::Survived,
        Judgement::AsDocumented => VerdictKind::AsDocumented,
        Judgement::Failed => return Err(anyhow!("{kind}: {met}")),
    };
    findings.verdict = Some(Verdict { kind: verdict, text: met.to_string() });
    Ok(findings)
}

/// As it is run where nobody asks for another.
fn usual(kind: FaultKind) -> Fault {
    match kind {
        // Once is easily missed: nobody need use the pages again in that moment.
        FaultKind::EarlyAck => Fault { times: 0, ms: Some(20), ..Fault::new(kind) },
        _ => Fault { after: 2, ..Fault::new(kind) },
    }
}

fn kind_named(name: &str) -> Result<FaultKind> {
    FaultKind::ALL.into_iter().find(|kind| kind.name() == name).context("no such kind of fault")
}

/// Every kind of fault against the model.
struct FaultsModel;

impl Experiment for FaultsModel {
    fn name(&self) -> &'static str {
        "faults-model"
    }

    fn about(&self) -> &'static str {
        "Every kind of fault of the backend's side, with the model or a bare driver as the guest"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, _: &Settings) -> Vec<String> {
        FaultKind::ALL.map(|kind| kind.name().to_owned()).into()
    }

    fn run(&self, case: &str, _: &Settings, context: &Context<'_>) -> Result<Findings> {
        run_on_model(&usual(kind_named(case)?), context)
    }
}

fn run_on_model(fault: &Fault, context: &Context<'_>) -> Result<Findings> {
    let kind = fault.kind;
    if kind.injector() == Injector::Daemon
        && let Err(why) = inject::strace()
    {
        let text = format!("{why:#}");
        let verdict = Some(Verdict { kind: VerdictKind::NotTestable, text });
        return Ok(Findings { verdict, ..Findings::default() });
    }
    judged(kind, &faults::model::meet(fault, &context.daemon()?)?)
}

/// The kinds of fault that Linux can meet.
struct FaultsLinux;

impl Experiment for FaultsLinux {
    fn name(&self) -> &'static str {
        "faults-linux"
    }

    fn about(&self) -> &'static str {
        "A device that breaks its promises, and faults of the daemon, with real Linux as the guest"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<String> {
        let kinds = FaultKind::ALL.into_iter().filter(|kind| faults::linux::meets(*kind));
        kinds.map(|kind| kind.name().to_owned()).collect()
    }

    fn run(&self, case: &str, _: &Settings, context: &Context<'_>) -> Result<Findings> {
        run_on_linux(&usual(kind_named(case)?), context)
    }
}

fn run_on_linux(fault: &Fault, context: &Context<'_>) -> Result<Findings> {
    match toolbox()? {
        Ok(toolbox) => {
            judged(fault.kind, &faults::linux::meet(fault, &toolbox, &context.daemon()?)?)
        }
        Err(text) => {
            let verdict = Some(Verdict { kind: VerdictKind::NotTestable, text });
            Ok(Findings { verdict, ..Findings::default() })
        }
    }
}

/// The faults of a plan, each a case.
pub struct Planned(Arc<FaultPlan>);

impl Planned {
    /// An experiment that lasts as long as the program.
    pub fn new(plan: FaultPlan) -> &'static Self {
        Box::leak(Box::new(Self(Arc::new(plan))))
    }

    /// The fault of a case, which its number in the plan begins the name of.
    fn fault(&self, case: &str) -> Option<&Fault> {
        let number: usize = case.split_once('-')?.0.parse().ok()?;
        self.0.faults.get(number.checked_sub(1)?)
    }
}

impl Experiment for Planned {
    fn name(&self) -> &'static str {
        "faults"
    }

    fn about(&self) -> &'static str {
        "The faults of a plan"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    fn repeats(&self, _: &str) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, _: &Settings) -> Vec<String> {
        let names = self.0.faults.iter().zip(1..);
        names.map(|(fault, number)| format!("{number}-{}", fault.kind)).collect()
    }

    fn again(&self, case: &str) -> Option<String> {
        self.fault(case).map(|fault| format!("--fault {fault}"))
    }

    fn run(&self, case: &str, _: &Settings, context: &Context<'_>) -> Result<Findings> {
        run_on_model(self.fault(case).context("no such fault")?, context)
    }
}
