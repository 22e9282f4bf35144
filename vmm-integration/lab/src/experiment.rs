// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The trait of an experiment, and the erased form that a list of experiments holds.
//!
//! A new experiment is one file, which implements [`Experiment`] with a struct of parameters and a
//! type of cases, and one row in [`crate::bench::experiments`] or [`crate::race::experiments`].

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};

use crate::parameters::{Assignments, Length, Parameter, Parameters, PlanError};
use crate::progress::Progress;
use crate::store::{Findings, Place};

/// A question, with cases that are run, kept and repeated one by one.
pub trait Experiment: Sync {
    /// Its parameters; `()` if it has none.
    type Parameters: Parameters;
    /// A case.
    type Case: Case;

    /// Its name.
    fn name(&self) -> &'static str;

    /// The question that it answers, in a sentence or two.
    fn about(&self) -> &'static str;

    /// The part of a case's results that the same seed repeats.
    fn repeats(&self, case: &Self::Case) -> Repeats;

    /// Its cases with these parameters.
    fn cases(&self, parameters: &Self::Parameters) -> Vec<Self::Case>;

    /// The words after the subcommand that repeat a case, if its name and parameters do not.
    fn again(&self, _case: &Self::Case) -> Option<String> {
        None
    }

    /// Runs one of [`Experiment::cases`].
    ///
    /// # Errors
    /// If the case cannot complete, or [`crate::progress::Interrupted`]. A figure that this machine
    /// cannot measure is a note instead.
    fn run(
        &self,
        case: &Self::Case,
        parameters: &Self::Parameters,
        context: &Context<'_>,
    ) -> Result<Findings>;
}

/// A case of an experiment. [`Display`] gives the name that commands and files use.
pub trait Case: Display {
    /// The table and column that show it.
    fn place(&self) -> Place {
        Place { table: String::new(), column: self.to_string() }
    }
}

/// The part of a result that the seed fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Everything: time is virtual.
    Exactly,
    /// Every action, and no time.
    ButForTimes,
    /// Every request to a real guest, and nothing that the guest does.
    ButForTheGuest,
}

impl Repeats {
    /// A sentence for a reader.
    pub fn text(self) -> &'static str {
        match self {
            Self::Exactly => "the same seed gives the same figures",
            Self::ButForTimes => {
                "the same seed gives the same actions; times depend on the machine"
            }
            Self::ButForTheGuest => {
                "the same seed sends the same requests to the guest; what a real Linux does when, and \
                 how long it takes, differs from run to run"
            }
        }
    }
}

/// The surroundings of a case.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The seed of the random numbers.
    pub seed: u64,
    /// The display of its progress.
    pub progress: &'a Progress,
    daemon: Option<&'a Path>,
}

impl<'a> Context<'a> {
    /// The surroundings with this daemon, or with the default one.
    pub fn new(seed: u64, progress: &'a Progress, daemon: Option<&'a Path>) -> Self {
        Self { seed, progress, daemon }
    }

    /// The path of the daemon's program.
    ///
    /// # Errors
    /// If neither the command line nor the environment gives one, and none lies beside this program.
    pub fn daemon(&self) -> Result<PathBuf> {
        const NAME: &str = "vhost-device-balloon";
        const VARIABLE: &str = "VHOST_DEVICE_BALLOON";
        if let Some(daemon) = self.daemon {
            return Ok(daemon.to_owned());
        }
        if let Some(daemon) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            return Ok(daemon.into());
        }
        let own = std::env::current_exe().context("looking for this program")?;
        let beside = own.parent().map(|folder| folder.join(NAME)).filter(|path| path.is_file());
        beside.with_context(|| {
            format!(
                "no {NAME} beside {}: give --daemon PATH, or its path in the environment variable \
                 {VARIABLE}",
                own.display()
            )
        })
    }
}

/// An experiment whose types are erased.
pub trait AnyExperiment: Sync {
    /// See [`Experiment::name`].
    fn name(&self) -> &'static str;

    /// See [`Experiment::about`].
    fn about(&self) -> &'static str;

    /// Its parameters.
    fn parameters(&self) -> Vec<Parameter>;

    /// Its cases for a run of this length with these parameters.
    ///
    /// # Errors
    /// See [`Parameters::read`].
    fn prepare(&'static self, length: Length, set: &Assignments) -> Result<Prepared, PlanError>;
}

/// An experiment with its parameters.
pub struct Prepared {
    /// The value of each parameter by name.
    pub parameters: BTreeMap<String, String>,
    /// The arguments that set them.
    pub arguments: String,
    /// Its cases.
    pub cases: Vec<Box<dyn AnyCase>>,
}

/// A case whose types are erased.
pub trait AnyCase {
    /// Its name.
    fn name(&self) -> String;

    /// See [`Case::place`].
    fn place(&self) -> Place;

    /// See [`Experiment::repeats`].
    fn repeats(&self) -> Repeats;

    /// See [`Experiment::again`].
    fn again(&self) -> Option<String>;

    /// Runs it.
    ///
    /// # Errors
    /// See [`Experiment::run`].
    fn run(&self, context: &Context<'_>) -> Result<Findings>;
}

impl<E: Experiment> AnyExperiment for E {
    fn name(&self) -> &'static str {
        Experiment::name(self)
    }

    fn about(&self) -> &'static str {
        Experiment::about(self)
    }

    fn parameters(&self) -> Vec<Parameter> {
        E::Parameters::declared()
    }

    fn prepare(&'static self, length: Length, set: &Assignments) -> Result<Prepared, PlanError> {
        let parameters = Rc::new(E::Parameters::read(length, set)?);
        let bound = |case| {
            let parameters = Rc::clone(&parameters);
            Box::new(Bound { experiment: self, parameters, case }) as Box<dyn AnyCase>
        };
        Ok(Prepared {
            parameters: parameters.by_name(),
            arguments: parameters.arguments(length),
            cases: self.cases(&parameters).into_iter().map(bound).collect(),
        })
    }
}

/// A case with all that it needs.
struct Bound<E: Experiment + 'static> {
    experiment: &'static E,
    parameters: Rc<E::Parameters>,
    case: E::Case,
}

impl<E: Experiment> AnyCase for Bound<E> {
    fn name(&self) -> String {
        self.case.to_string()
    }

    fn place(&self) -> Place {
        self.case.place()
    }

    fn repeats(&self) -> Repeats {
        self.experiment.repeats(&self.case)
    }

    fn again(&self) -> Option<String> {
        self.experiment.again(&self.case)
    }

    fn run(&self, context: &Context<'_>) -> Result<Findings> {
        self.experiment.run(&self.case, &self.parameters, context)
    }
}
