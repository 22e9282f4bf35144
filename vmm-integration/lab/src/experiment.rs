// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an experiment is, and a run of some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};

use super::PROGRAM;
use super::machine::Machine;
use super::parameters::{Length, Parameter, PlanError, Settings, assignments};
use super::progress::{Interrupted, Progress};
use super::store::{CaseRecord, FORMAT, Failure, Findings, Store};

/// Something to find out, in cases that are each run, kept and repeated by themselves.
pub trait Experiment: Sync {
    /// What it is called by.
    fn name(&self) -> &'static str;

    /// What it finds out, in a sentence or two.
    fn about(&self) -> &'static str;

    /// What can be set.
    fn parameters(&self) -> &'static [Parameter];

    /// Whether the same seed gives the same figures in a case; if not, what differs.
    fn repeats(&self, case: &str) -> Repeats;

    /// The names of its cases with these settings.
    fn cases(&self, settings: &Settings) -> Vec<String>;

    /// What repeats a case, if not its name and its settings: words that follow the subcommand.
    fn again(&self, _case: &str) -> Option<String> {
        None
    }

    /// Runs one of [`Experiment::cases`].
    ///
    /// # Errors
    /// Where it cannot be run to its end, and [`Interrupted`] if it is asked to end. A figure that
    /// cannot be had here is a note, and no error.
    fn run(&self, case: &str, settings: &Settings, context: &Context<'_>) -> Result<Findings>;
}

/// What a seed fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Everything: time is virtual.
    Exactly,
    /// What is done; not how long it takes.
    ButForTimes,
    /// What is asked of a real guest; not what it does when.
    ButForTheGuest,
}

impl Repeats {
    /// For a reader.
    pub fn text(self) -> &'static str {
        match self {
            Self::Exactly => "the same seed gives the same figures",
            Self::ButForTimes => "the same seed does the same; times are the machine's",
            Self::ButForTheGuest => {
                "the same seed asks the same of the guest; what a real Linux does when, and how \
                 long it takes, differs from run to run"
            }
        }
    }
}

/// What a case gets beside its settings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What random numbers begin with.
    pub seed: u64,
    /// How far it is.
    pub progress: &'a Progress,
    daemon: Option<&'a Path>,
}

impl<'a> Context<'a> {
    /// For a case that needs no daemon, or this one.
    pub fn new(seed: u64, progress: &'a Progress, daemon: Option<&'a Path>) -> Self {
        Self { seed, progress, daemon }
    }

    /// The daemon's program.
    ///
    /// # Errors
    /// Where none was given, in the environment either, and none lies beside this program.
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
                "there is no {NAME} beside {}: expected --daemon PATH, or its path in the \
                 environment variable {VARIABLE}",
                own.display()
            )
        })
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The program's subcommand, which a command that repeats a case names.
    pub verb: &'static str,
    /// Which experiments, by name; none means all.
    pub experiments: Vec<String>,
    /// Which cases of them, by name; none means all.
    pub cases: Vec<String>,
    /// What is set, as `NAME=VALUE`.
    pub set: Vec<String>,
    /// What random numbers begin with.
    pub seed: u64,
    /// How long.
    pub length: Length,
}

/// A case to be run.
struct Planned {
    experiment: &'static dyn Experiment,
    settings: Settings,
    case: String,
}

/// A run that was checked.
pub struct Plan {
    verb: &'static str,
    cases: Vec<Planned>,
    seed: u64,
    length: Length,
}

/// How a run ended.
#[derive(Debug, Default)]
pub struct Ran {
    /// What was found, in the plan's order; with what was kept before if the run went on.
    pub records: Vec<CaseRecord>,
    /// How many of these were kept before.
    pub skipped: usize,
    /// How many of these a program built of another commit has kept.
    pub of_other_commits: usize,
    /// The cases that failed: command and error.
    pub failed: Vec<(String, anyhow::Error)>,
    /// Why the last of the records could not be kept; the run has ended there.
    pub unkept: Option<anyhow::Error>,
    /// It was asked to end.
    pub interrupted: bool,
}

impl Plan {
    /// Checks what is asked for against the experiments that there are.
    ///
    /// # Errors
    /// [`PlanError`], which names what was wrong and what was expected.
    pub fn new(
        experiments: &[&'static dyn Experiment],
        request: &Request,
    ) -> Result<Self, PlanError> {
        let names = |of: &[&dyn Experiment]| {
            of.iter().map(|experiment| experiment.name()).collect::<Vec<_>>().join(", ")
        };
        let mut chosen: Vec<&'static dyn Experiment> = Vec::new();
        for name in &request.experiments {
            let found = experiments.iter().find(|experiment| experiment.name() == name);
            let found = *found.ok_or_else(|| PlanError::Experiment {
                name: name.clone(),
                known: names(experiments),
            })?;
            if !chosen.iter().any(|known| known.name() == name) {
                chosen.push(found);
            }
        }
        if chosen.is_empty() {
            chosen = experiments.to_vec();
        }
        let set = assignments(&request.set)?;
        let known: BTreeSet<_> =
            chosen.iter().flat_map(|e| e.parameters()).map(|parameter| parameter.name).collect();
        if let Some((name, _)) = set.iter().find(|(name, _)| !known.contains(name.as_str())) {
            return Err(PlanError::Name {
                name: name.clone(),
                experiments: names(&chosen),
                known: Vec::from_iter(known).join(", "),
            });
        }
        let mut cases = Vec::new();
        let mut all = Vec::new();
        for experiment in &chosen {
            let settings = Settings::new(experiment.parameters(), request.length, &set)?;
            for case in experiment.cases(&settings) {
                all.push(case.clone());
                if request.cases.is_empty() || request.cases.contains(&case) {
                    let settings = settings.clone();
                    cases.push(Planned { experiment: *experiment, settings, case });
                }
            }
        }
        if let Some(name) = request.cases.iter().find(|name| !all.contains(name)) {
            return Err(PlanError::Case {
                experiment: names(&chosen),
                name: name.clone(),
                known: all.join(", "),
            });
        }
        Ok(Self { verb: request.verb, cases, seed: request.seed, length: request.length })
    }

    /// How many cases.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// The command that repeats one case.
    fn command(&self, planned: &Planned) -> String {
        let Planned { experiment, settings, case } = planned;
        if let Some(again) = experiment.again(case) {
            return format!("{PROGRAM} {} {again} --seed {}", self.verb, self.seed);
        }
        let full = if self.length == Length::Full { " --full" } else { "" };
        format!(
            "{PROGRAM} {} {} --case {case}{full} --seed {}{}",
            self.verb,
            experiment.name(),
            self.seed,
            settings.arguments()
        )
    }

    /// Runs the cases one after the other and keeps each when it is done. With `resume` those that
    /// are kept from a run with the same seed and parameters are not run again. A case that fails
    /// does not keep the others from being run; that it did is kept as well. Where a record cannot be
    /// kept the run ends, and has that record still.
    ///
    /// # Errors
    /// Where nothing can be kept in the store, or another run is at it.
    pub fn run(&self, store: &Store, resume: bool, daemon: Option<&Path>) -> Result<Ran> {
        let _claim = store.claim()?;
        let progress = Progress::new(self.cases.len());
        let mut ran = Ran::default();
        for planned in &self.cases {
            let Planned { experiment, settings, case } = planned;
            let command = self.command(planned);
            let kept = if resume { store.get(experiment.name(), case) } else { None };
            if let Some(kept) = kept {
                let other = difference(&kept, self.seed, &settings.texts());
                if other.is_none() && kept.command == command {
                    let here = Machine::here().commit;
                    ran.of_other_commits += usize::from(kept.machine.commit != here);
                    ran.records.push(kept);
                    ran.skipped += 1;
                    progress.end();
                    continue;
                }
                let other = other.unwrap_or_else(|| format!("another command: {}", kept.command));
                let name = experiment.name();
                progress.line(&format!("{name} {case}: kept with {other}; run again and replaced"));
            }
            if super::progress::interrupted() {
                ran.interrupted = true;
                break;
            }
            progress.begin(&format!("{} {case}", experiment.name()));
            let machine = Machine::here();
            let context = Context::new(self.seed, &progress, daemon);
            // The model panics where it finds itself inconsistent: that is a result of this case.
            let run = AssertUnwindSafe(|| experiment.run(case, settings, &context));
            let result = catch_unwind(run).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(anyhow!("panicked: {}", text.unwrap_or("without a text")))
            });
            let unkept = match result {
                Ok(findings) => {
                    let record = self.record(planned, findings, machine);
                    let kept = store.put(&record);
                    ran.records.push(record);
                    kept.err()
                }
                Err(error) if error.is::<Interrupted>() || super::progress::interrupted() => {
                    ran.interrupted = true;
                    break;
                }
                Err(error) => {
                    progress.line(&format!("{} {case}: {error:#}", experiment.name()));
                    let kept = store.put_failure(&Failure {
                        experiment: experiment.name().to_owned(),
                        case: case.clone(),
                        command: command.clone(),
                        machine,
                        error: format!("{error:#}"),
                    });
                    ran.failed.push((command, error));
                    kept.err()
                }
            };
            if unkept.is_some() {
                ran.unkept = unkept;
                break;
            }
            progress.end();
        }
        Ok(ran)
    }

    fn record(&self, planned: &Planned, findings: Findings, machine: Machine) -> CaseRecord {
        let Planned { experiment, settings, case } = planned;
        let Findings { figures, series, map, verdict, mut notes } = findings;
        notes.push(format!("Repeating it: {}.", experiment.repeats(case).text()));
        CaseRecord {
            format: FORMAT,
            experiment: experiment.name().to_owned(),
            case: case.clone(),
            seed: self.seed,
            parameters: settings.texts(),
            command: self.command(planned),
            machine,
            figures,
            series,
            map,
            verdict,
            notes,
        }
    }
}

/// What a record was made with, where that is not what is asked for.
fn difference(
    kept: &CaseRecord,
    seed: u64,
    parameters: &BTreeMap<String, String>,
) -> Option<String> {
    let mut other = Vec::new();
    if kept.seed != seed {
        other.push(format!("seed {} and not {seed}", kept.seed));
    }
    let names: BTreeSet<&String> = kept.parameters.keys().chain(parameters.keys()).collect();
    for name in names {
        let [old, new] = [kept.parameters.get(name), parameters.get(name)];
        if old != new {
            let text = |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
            other.push(format!("{name}={} and not {}", text(old), text(new)));
        }
    }
    (!other.is_empty()).then(|| other.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::Kind;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how often it was run; its case `bad` fails.
    struct Counting(AtomicUsize);

    static COUNTING: Counting = Counting(AtomicUsize::new(0));

    impl Experiment for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        fn about(&self) -> &'static str {
            "counts"
        }
        fn parameters(&self) -> &'static [Parameter] {
            const PARAMETERS: &[Parameter] = &[Parameter {
                name: "by",
                what: "step",
                kind: Kind::Number(1, 9),
                quick: "1",
                full: "2",
            }];
            PARAMETERS
        }
        fn repeats(&self, _: &str) -> Repeats {
            Repeats::Exactly
        }
        fn cases(&self, _: &Settings) -> Vec<String> {
            ["good", "bad", "better"].map(str::to_owned).into()
        }
        fn run(&self, case: &str, settings: &Settings, _: &Context<'_>) -> Result<Findings> {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(case != "bad", "as it was meant to");
            let mut findings = Findings::default();
            findings.figure("by", f64::from(u32::try_from(settings.number("by"))?), "", "step");
            Ok(findings)
        }
    }

    fn request(experiments: &[&str], cases: &[&str], set: &[&str]) -> Request {
        let own = |of: &[&str]| of.iter().map(|&text| text.to_owned()).collect();
        Request {
            verb: "bench",
            experiments: own(experiments),
            cases: own(cases),
            set: own(set),
            seed: 7,
            length: Length::Quick,
        }
    }

    fn plan(request: &Request) -> Result<Plan, PlanError> {
        Plan::new(&[&COUNTING], request)
    }

    #[test]
    fn what_is_not_there_is_named_with_what_there_is() {
        for (request, expected) in [
            (
                request(&["cuonting"], &[], &[]),
                "no experiment \"cuonting\": expected one of counting",
            ),
            (
                request(&[], &["worse"], &[]),
                "no case \"worse\" with these parameters: expected one of good, bad, better",
            ),
            (request(&[], &[], &["bye=1"]), "no parameter \"bye\" in counting: expected one of by"),
            (
                request(&[], &[], &["by=10"]),
                "parameter by is \"10\": expected a whole number from 1 to 9",
            ),
        ] {
            let said = plan(&request).err().expect("it is wrong").to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_run_that_goes_on_does_not_do_again_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let before = COUNTING.0.load(Ordering::Relaxed);
        let runs = || COUNTING.0.load(Ordering::Relaxed) - before;
        let ran = plan(&request(&[], &["good"], &[])).unwrap().run(&store, false, None).unwrap();
        assert_eq!((ran.records.len(), runs()), (1, 1));
        assert_eq!(ran.records[0].command, "cargo xtask lab bench counting --case good --seed 7");

        let all = plan(&request(&[], &[], &[])).unwrap();
        let ran = all.run(&store, true, None).unwrap();
        assert_eq!((ran.records.len(), ran.skipped, runs()), (2, 1, 3));
        assert_eq!(ran.failed.len(), 1, "a case that fails does not keep the others back");
        assert!(ran.failed[0].0.contains("--case bad"), "{:?}", ran.failed);
        assert_eq!(ran.failed[0].1.to_string(), "panicked: as it was meant to");
        let failures = store.kept().unwrap().failures;
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].command, ran.failed[0].0);
        assert_eq!(failures[0].error, "panicked: as it was meant to");

        // Kept from other parameters it is of no use.
        let other = BTreeMap::from([("by".to_owned(), "3".to_owned())]);
        let said = difference(&ran.records[0], 8, &other).unwrap();
        assert_eq!(said, "seed 7 and not 8, by=1 and not 3");
        let other = plan(&request(&[], &["good"], &["by=3"])).unwrap();
        let ran = other.run(&store, true, None).unwrap();
        assert_eq!((ran.skipped, runs()), (0, 4));
        assert!((ran.records[0].figures["by"].value - 3.0).abs() < f64::EPSILON);
    }
}
