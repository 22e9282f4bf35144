// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A checked plan of cases, and its run.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, anyhow};

use crate::PROGRAM;
use crate::experiment::{AnyCase, AnyExperiment, Context, Prepared};
use crate::machine::Machine;
use crate::parameters::{Assignments, Length, PlanError};
use crate::progress::{Interrupted, Progress, interrupted};
use crate::store::{CaseRecord, FORMAT, Failure, Findings, Store};

/// A request for a run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The program's subcommand, for commands that repeat a case.
    pub verb: &'static str,
    /// The names of the experiments; empty for all.
    pub experiments: Vec<String>,
    /// The names of their cases; empty for all.
    pub cases: Vec<String>,
    /// Assignments to parameters, as `NAME=VALUE`.
    pub set: Vec<String>,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The length of the run.
    pub length: Length,
}

/// A case of a plan.
struct Planned {
    experiment: &'static str,
    parameters: Rc<BTreeMap<String, String>>,
    case: Box<dyn AnyCase>,
    name: String,
    command: String,
}

/// A checked run.
pub struct Plan {
    cases: Vec<Planned>,
    seed: u64,
}

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Ran {
    /// The records in the plan's order, those that a resumed run skipped included.
    pub records: Vec<CaseRecord>,
    /// The number of cases that were skipped because their record was kept before.
    pub skipped: usize,
    /// The number of these that a program built of another commit wrote.
    pub of_other_commits: usize,
    /// The failed cases: command and error.
    pub failed: Vec<(String, anyhow::Error)>,
    /// The error of writing the last record, which ended the run.
    pub unkept: Option<anyhow::Error>,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

impl Request {
    /// The command that repeats a case.
    fn command(&self, experiment: &str, case: &dyn AnyCase, arguments: &str) -> String {
        let Self { verb, seed, .. } = self;
        match case.again() {
            Some(again) => format!("{PROGRAM} {verb} {again} --seed {seed}"),
            None => {
                let (case, full) = (case.name(), self.length.pick("", " --full"));
                format!(
                    "{PROGRAM} {verb} {experiment} --case {case}{full} --seed {seed}{arguments}"
                )
            }
        }
    }
}

fn names(of: &[&'static dyn AnyExperiment]) -> String {
    of.iter().map(|experiment| experiment.name()).collect::<Vec<_>>().join(", ")
}

/// The experiments of these names, each once; all if there are none.
///
/// # Errors
/// [`PlanError::Experiment`].
pub fn choose(
    known: &[&'static dyn AnyExperiment],
    wanted: &[String],
) -> Result<Vec<&'static dyn AnyExperiment>, PlanError> {
    let unknown = |name: &&String| known.iter().all(|experiment| experiment.name() != **name);
    if let Some(name) = wanted.iter().find(unknown) {
        return Err(PlanError::Experiment { name: name.clone(), known: names(known) });
    }
    let chosen = known.iter().copied();
    Ok(chosen
        .filter(|one| wanted.is_empty() || wanted.iter().any(|name| name == one.name()))
        .collect())
}

impl Plan {
    /// Checks a request against the known experiments.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn new(known: &[&'static dyn AnyExperiment], request: &Request) -> Result<Self, PlanError> {
        let chosen = choose(known, &request.experiments)?;
        let set = Assignments::parse(&request.set)?;
        let parameters: BTreeSet<String> =
            chosen.iter().flat_map(|e| e.parameters()).map(|parameter| parameter.name).collect();
        if let Some(name) = set.names().find(|name| !parameters.contains(*name)) {
            return Err(PlanError::Name {
                name: name.to_owned(),
                experiments: names(&chosen),
                known: Vec::from_iter(parameters).join(", "),
            });
        }
        let mut cases = Vec::new();
        for experiment in &chosen {
            let prepared = experiment.prepare(request.length, &set)?;
            let Prepared { parameters, arguments, cases: prepared } = prepared;
            let (experiment, parameters) = (experiment.name(), Rc::new(parameters));
            cases.extend(prepared.into_iter().map(|case| {
                let name = case.name();
                let command = request.command(experiment, &*case, &arguments);
                Planned { experiment, parameters: Rc::clone(&parameters), case, name, command }
            }));
        }
        let all = || cases.iter().map(|planned| planned.name.as_str());
        if let Some(name) = request.cases.iter().find(|name| all().all(|known| known != **name)) {
            return Err(PlanError::Case {
                experiment: names(&chosen),
                name: name.clone(),
                known: all().collect::<Vec<_>>().join(", "),
            });
        }
        cases.retain(|case| request.cases.is_empty() || request.cases.contains(&case.name));
        Ok(Self { cases, seed: request.seed })
    }

    /// The number of cases.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether it has no case.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Runs the cases one after the other, and writes a record when each is done. With `resume` a
    /// case is skipped if its record has the same command, seed and parameters. A failed case is
    /// recorded as such and does not end the run. A record that cannot be written does.
    ///
    /// # Errors
    /// If the store is not writable, or another run uses it.
    pub fn run(&self, store: &Store, resume: bool, daemon: Option<&Path>) -> Result<Ran> {
        let _claim = store.claim()?;
        let progress = Progress::new(self.cases.len());
        let mut ran = Ran::default();
        for planned in &self.cases {
            let Planned { experiment, name, command, .. } = planned;
            if resume && let Some(kept) = store.get(experiment, name) {
                let Some(other) = self.difference(planned, &kept) else {
                    let here = Machine::here().commit;
                    ran.of_other_commits += usize::from(kept.machine.commit != here);
                    ran.records.push(kept);
                    ran.skipped += 1;
                    progress.end();
                    continue;
                };
                progress.line(&format!(
                    "{experiment} {name}: running again, the kept record differs: {other}"
                ));
            }
            if interrupted() {
                ran.interrupted = true;
                break;
            }
            progress.begin(&format!("{experiment} {name}"));
            let machine = Machine::here();
            let context = Context::new(self.seed, &progress, daemon);
            // The model panics if it finds itself inconsistent: that is a result of this case.
            let result = catch_unwind(AssertUnwindSafe(|| planned.case.run(&context)));
            let result = result.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(anyhow!("panicked: {}", text.unwrap_or("without a message")))
            });
            let written = match result {
                Ok(findings) => {
                    let record = self.record(planned, findings, machine);
                    let written = store.put(&record);
                    ran.records.push(record);
                    written
                }
                Err(error) if error.is::<Interrupted>() || interrupted() => {
                    ran.interrupted = true;
                    break;
                }
                Err(error) => {
                    progress.line(&format!("{experiment} {name}: {error:#}"));
                    let written = store.put_failure(&Failure {
                        experiment: (*experiment).to_owned(),
                        case: name.clone(),
                        command: command.clone(),
                        machine,
                        error: format!("{error:#}"),
                    });
                    ran.failed.push((command.clone(), error));
                    written
                }
            };
            if let Err(error) = written {
                ran.unkept = Some(error);
                break;
            }
            progress.end();
        }
        Ok(ran)
    }

    fn record(&self, planned: &Planned, findings: Findings, machine: Machine) -> CaseRecord {
        let Findings { figures, series, map, verdict, mut notes } = findings;
        notes.push(format!("Repeatable: {}.", planned.case.repeats().text()));
        CaseRecord {
            format: FORMAT,
            experiment: planned.experiment.to_owned(),
            case: planned.name.clone(),
            place: planned.case.place(),
            seed: self.seed,
            parameters: (*planned.parameters).clone(),
            command: planned.command.clone(),
            machine,
            figures,
            series,
            map,
            verdict,
            notes,
        }
    }

    /// The seed and parameters of a record that differ from those of the plan; none if it has the
    /// same command as well.
    fn difference(&self, planned: &Planned, kept: &CaseRecord) -> Option<String> {
        let mut other = Vec::new();
        if kept.seed != self.seed {
            other.push(format!("seed {}, not {}", kept.seed, self.seed));
        }
        let parameters = &planned.parameters;
        let names: BTreeSet<&String> = kept.parameters.keys().chain(parameters.keys()).collect();
        for name in names {
            let [old, new] = [kept.parameters.get(name), parameters.get(name)];
            if old != new {
                let text =
                    |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
                other.push(format!("{name}={}, not {}", text(old), text(new)));
            }
        }
        if other.is_empty() && kept.command != planned.command {
            other.push(format!("command {}", kept.command));
        }
        (!other.is_empty()).then(|| other.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{Case, Experiment, Repeats};
    use crate::parameters::parameters;
    use crate::parameters::takes::Whole;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts its runs; its case `bad` fails.
    struct Counting(AtomicUsize);

    static COUNTING: Counting = Counting(AtomicUsize::new(0));

    parameters! {
        struct Settings {
            by: u32, Whole(1, 9), 1, 2, "step";
        }
    }

    #[derive(PartialEq, strum::Display)]
    #[strum(serialize_all = "kebab-case")]
    enum Quality {
        Good,
        Bad,
        Better,
    }

    impl Case for Quality {}

    impl Experiment for Counting {
        type Parameters = Settings;
        type Case = Quality;

        fn name(&self) -> &'static str {
            "counting"
        }
        fn about(&self) -> &'static str {
            "counts"
        }
        fn repeats(&self, _: &Quality) -> Repeats {
            Repeats::Exactly
        }
        fn cases(&self, _: &Settings) -> Vec<Quality> {
            vec![Quality::Good, Quality::Bad, Quality::Better]
        }
        fn run(&self, case: &Quality, settings: &Settings, _: &Context<'_>) -> Result<Findings> {
            self.0.fetch_add(1, Ordering::Relaxed);
            assert!(*case != Quality::Bad, "as it was meant to");
            let mut findings = Findings::default();
            findings.figure("by", f64::from(settings.by), "", "step");
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
    fn unknown_name_is_named_with_the_known_ones() {
        for (request, expected) in [
            (
                request(&["cuonting"], &[], &[]),
                "unknown experiment \"cuonting\": expected one of counting",
            ),
            (
                request(&[], &["worse"], &[]),
                "unknown case \"worse\" of counting with these parameters: expected one of good, bad, better",
            ),
            (
                request(&[], &[], &["bye=1"]),
                "unknown parameter \"bye\" of counting: expected one of by",
            ),
            (request(&[], &[], &["by=10"]), "by (got \"10\", expected a whole number from 1 to 9)"),
        ] {
            let said = plan(&request).err().expect("it is wrong").to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn resumed_run_skips_kept_cases() {
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
        assert_eq!(ran.failed.len(), 1, "a failed case does not end the run");
        assert!(ran.failed[0].0.contains("--case bad"), "{:?}", ran.failed);
        assert_eq!(ran.failed[0].1.to_string(), "panicked: as it was meant to");
        let failures = store.kept().unwrap().failures;
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].command, ran.failed[0].0);
        assert_eq!(failures[0].error, "panicked: as it was meant to");

        // A record of other parameters does not count.
        let mut seed = request(&[], &["good"], &["by=3"]);
        seed.seed = 8;
        let seed = plan(&seed).unwrap();
        let said = seed.difference(&seed.cases[0], &ran.records[0]).unwrap();
        assert_eq!(said, "seed 7, not 8; by=1, not 3");
        let other = plan(&request(&[], &["good"], &["by=3"])).unwrap();
        let ran = other.run(&store, true, None).unwrap();
        assert_eq!((ran.skipped, runs()), (0, 4));
        assert!((ran.records[0].figures["by"].value - 3.0).abs() < f64::EPSILON);
    }
}
