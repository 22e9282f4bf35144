// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `balloon-lab`: measures free page reporting, and races it with offlining and faults.
//!
//! `cargo xtask lab` builds it with the daemon and runs it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use balloon_lab::bench::experiments;
use balloon_lab::experiment::AnyExperiment;
use balloon_lab::faults::plan::{Fault, FaultKind, FaultPlan};
use balloon_lab::machine::Machine;
use balloon_lab::parameters::{Assignments, Length, Parameter, PlanError};
use balloon_lab::plan::{Plan, Request, choose};
use balloon_lab::progress::{INTERRUPTED_STATUS, interrupted, say, watch_for_interrupts};
use balloon_lab::report::verdict_name;
use balloon_lab::store::{CaseRecord, Store, VerdictKind};
use balloon_lab::{PROGRAM, race, report, table};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

/// Measures free page reporting over any guest, and keeps a record of every case.
///
/// An experiment has cases and parameters. `list` shows them, `bench` and `race` run them, `report` turns
/// the records into one page. Guests are the model of Linux's page allocator and, where QEMU and a kernel
/// are available, real Linux.
#[derive(Parser)]
#[command(name = "balloon-lab", bin_name = PROGRAM, after_help = LAB_EXAMPLES)]
struct Lab {
    #[command(subcommand)]
    command: Command,
}

const LAB_EXAMPLES: &str = "\
Examples:
  cargo xtask setup                       fetches QEMU and a kernel for Linux guests, once
  cargo xtask lab list                    experiments, cases, parameters and faults
  cargo xtask lab bench trackers --case section-bit-isolate-uniform    one case, some seconds
  cargo xtask lab report                  writes target/lab/report.html
  cargo xtask bench                       runs everything in short, and writes the report

Exit status: 0; 1 if a case failed or memory was lost; 2 for a wrong command line; 130 after an
interrupt.";

const LIST_EXAMPLES: &str = "\
Examples:
  cargo xtask lab list                   all experiments
  cargo xtask lab list scale overhead    two experiments
  cargo xtask lab list --json            JSON, for programs";

const BENCH_EXAMPLES: &str = "\
Examples:
  cargo xtask lab bench                                           all experiments, in short
  cargo xtask lab bench trackers scale                            two experiments
  cargo xtask lab bench trackers --case section-bit-isolate-uniform   one case
  cargo xtask lab bench trackers --set order=10 --set delay=0.5   other parameters
  cargo xtask lab bench --full --out results --resume             resumes an interrupted run
  cargo xtask lab bench scale --json > scale.json                 records for programs

`cargo xtask lab list` shows the names of experiments, cases and parameters.";

const RACE_EXAMPLES: &str = "\
Examples:
  cargo xtask lab race                                                   all experiments, in short
  cargo xtask lab race race-linux --case daemon --cycles 100000          offlining in real Linux
  cargo xtask lab race hypotheses --case hung-backend                    one hypothesis
  cargo xtask lab race placement --set seconds=600                       cpusets and nodes, ten minutes a case
  cargo xtask lab race shared-page-tables --set runs=10                  hugetlb faults, forks, punches, ten times
  cargo xtask lab race oom-reaper --case kvm-late --set runs=10          the OOM reaper and KVM, ten kills
  cargo xtask lab race --fault delay-ack:after=3,times=2,ms=500          one fault
  cargo xtask lab race --fault discard-fails:errno=ENOSPC --fault drop-ack   two faults, each a case
  cargo xtask lab race --faults plan.toml                                a plan: see docs/user/lab.md

`cargo xtask lab list` shows the names of experiments, cases, parameters and faults.";

const REPORT_EXAMPLES: &str = "\
Examples:
  cargo xtask lab report                                     writes target/lab/report.html
  cargo xtask lab report --from results --out /tmp/page.html

The page is one file without references to others. An unreadable record is named on stderr and on the
page, and the exit status is 1.";

const ALL_EXAMPLES: &str = "\
`cargo xtask bench` runs this subcommand.";

#[derive(Subcommand)]
enum Command {
    /// List experiments with their cases and parameters, and the kinds of fault.
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Experiments to list [default: all].
        #[arg(value_name = "NAME")]
        experiments: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run the experiments that measure, and keep their records.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Run),
    /// Race memory offlining and faults of the backend with reporting, and try hypotheses.
    #[command(after_help = RACE_EXAMPLES)]
    Race(Race),
    /// Run all of `bench` and `race`, and write the report.
    #[command(after_help = ALL_EXAMPLES)]
    All(Kept),
    /// Write a page from the records: tables, curves, maps, and the commands that repeat them.
    #[command(after_help = REPORT_EXAMPLES)]
    Report {
        /// Folder of the records.
        #[arg(long, value_name = "DIR", default_value = "target/lab")]
        from: PathBuf,
        /// File of the page [default: report.html in the folder of the records].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// The options of every run.
#[derive(Args, Clone)]
struct Kept {
    /// Run seconds a case. This is the default.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Run minutes a case, for figures to quote.
    #[arg(long)]
    full: bool,
    /// Seed of the random numbers.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    seed: u64,
    /// Folder of the records. One run at a time can use it.
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
    /// Skip cases whose record has the same command, seed and parameters.
    #[arg(long)]
    resume: bool,
    /// Daemon to measure [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Print records as one JSON array instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Run {
    /// Experiments to run [default: all].
    #[arg(value_name = "NAME")]
    experiments: Vec<String>,
    /// Run only this case. Repeatable.
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<String>,
    /// Set a parameter of all chosen experiments that have it. Repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    kept: Kept,
}

#[derive(Args)]
struct Race {
    #[command(flatten)]
    run: Run,
    /// Cycles of a memory block, of a cpuset, or of a bound task: short for `--set cycles=N`.
    #[arg(long, value_name = "N")]
    cycles: Option<u64>,
    /// Run the faults of this plan, in TOML, instead of the experiments.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Run this fault instead of the experiments: `delay-ack:after=3,ms=500`. Repeatable.
    #[arg(long, value_name = "KIND[:FIELD=VALUE,..]")]
    fault: Vec<String>,
}

/// The exit status of a wrong command line.
const USAGE: u8 = 2;
/// The exit status if a case failed or memory was lost.
const FAILED: u8 = 1;

type Experiments = &'static [&'static dyn AnyExperiment];

fn main() -> ExitCode {
    let done = match Lab::parse().command {
        Command::List { experiments, json } => list(&experiments, json),
        Command::Bench(options) => run(&[("bench", experiments())], &options),
        Command::Race(options) => run_race(options),
        Command::All(kept) => all(kept),
        Command::Report { from, out } => write_report(&from, out),
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            say(&format!("error: {error:#}"));
            let wrong = error.is::<PlanError>();
            ExitCode::from(if wrong { USAGE } else { FAILED })
        }
    }
}

/// Writes to stdout. A reader that has closed it is not an error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("writing to standard output"),
    }
}

fn list(wanted: &[String], json: bool) -> Result<u8> {
    let all: Vec<_> = [experiments(), race::experiments()].concat();
    let mut texts = Vec::new();
    let mut objects = Vec::new();
    choose(&all, wanted)?;
    // A measurement and a race may have the same name.
    let verbs = [("bench", experiments()), ("race", race::experiments())];
    let each = verbs.into_iter().flat_map(|(verb, all)| all.iter().map(move |one| (verb, *one)));
    let is_wanted = |experiment: &dyn AnyExperiment| {
        wanted.is_empty() || wanted.iter().any(|name| name == experiment.name())
    };
    for (verb, experiment) in each.filter(|(_, experiment)| is_wanted(*experiment)) {
        let cases = |length| -> Result<Vec<String>, PlanError> {
            let prepared = experiment.prepare(length, &Assignments::default())?;
            Ok(prepared.cases.iter().map(|case| case.name()).collect())
        };
        let (quick, full) = (cases(Length::Quick)?, cases(Length::Full)?);
        let (name, about) = (experiment.name(), experiment.about());
        let parameters = experiment.parameters();
        let mut text = format!("{name} ({PROGRAM} {verb} {name})\n  {about}");
        for Parameter { name, what, takes, quick, full } in &parameters {
            text.push_str(&format!("\n    {name}: {what}; {takes}. Quick: {quick}, full: {full}"));
        }
        text.push_str(&format!("\n  {} cases: {}", quick.len(), quick.join(", ")));
        let added: Vec<&str> =
            full.iter().filter(|case| !quick.contains(case)).map(String::as_str).collect();
        if !added.is_empty() {
            text.push_str(&format!("\n  with --full also: {}", added.join(", ")));
        }
        texts.push(text);
        objects.push(json!({
            "experiment": name,
            "subcommand": verb,
            "about": about,
            "parameters": parameters,
            "cases": { "quick": quick, "full": full },
        }));
    }
    if json {
        print(&serde_json::to_string_pretty(&objects)?)?;
        return Ok(0);
    }
    if wanted.is_empty() {
        let kinds: Vec<&str> = FaultKind::ALL.into_iter().map(FaultKind::name).collect();
        texts.push(format!(
            "faults ({PROGRAM} race --fault KIND[:FIELD=VALUE,..])\n  Kinds: {}\n  Fields: after, \
             times, ms, errno; docs/user/lab.md says which kind takes which",
            kinds.join(", ")
        ));
    }
    print(&texts.join("\n\n"))?;
    Ok(0)
}

fn run_race(race: Race) -> Result<u8> {
    let Race { run: mut options, cycles, faults, fault } = race;
    options.set.extend(cycles.map(|cycles| format!("cycles={cycles}")));
    if faults.is_none() && fault.is_empty() {
        return run(&[("race", race::experiments())], &options);
    }
    let plan = || {
        let mut all = faults.as_deref().map_or(Ok(FaultPlan::default()), FaultPlan::read)?.faults;
        for flag in &fault {
            all.push(Fault::parse(flag)?);
        }
        FaultPlan::new(all)
    };
    match plan() {
        Ok(plan) => {
            let planned: &dyn AnyExperiment = Box::leak(Box::new(race::Planned::new(plan)));
            run(&[("race", Box::leak(Box::new([planned])))], &options)
        }
        Err(error) => {
            say(&format!("error: {:#}", anyhow::Error::new(error)));
            Ok(USAGE)
        }
    }
}

fn all(kept: Kept) -> Result<u8> {
    let out = kept.out.clone();
    let options = Run { experiments: Vec::new(), cases: Vec::new(), set: Vec::new(), kept };
    let ran = run(&[("bench", experiments()), ("race", race::experiments())], &options)?;
    // The report has what there is, even after a failure or an interrupt.
    let reported =
        if Store::new(&out).kept()?.records.is_empty() { 0 } else { write_report(&out, None)? };
    Ok(ran.max(reported))
}

/// Runs the requested experiments of each subcommand.
fn run(of: &[(&'static str, Experiments)], options: &Run) -> Result<u8> {
    let Run { experiments, cases, set, kept } = options;
    let plan = |&(verb, known): &(&'static str, Experiments)| {
        let request = Request {
            verb,
            experiments: experiments.clone(),
            cases: cases.clone(),
            set: set.clone(),
            seed: kept.seed,
            length: if kept.full { Length::Full } else { Length::Quick },
        };
        Plan::new(known, &request)
    };
    let plans = of.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    let planned: usize = plans.iter().map(Plan::len).sum();
    watch_for_interrupts()?;
    let again = again();
    let cases = if planned == 1 { "case" } else { "cases" };
    say(&format!("{planned} {cases}, records in {}; to repeat: {again}", kept.out.display()));
    let store = Store::new(&kept.out);
    let mut code = 0;
    let mut records = Vec::new();
    for plan in plans {
        let ran = plan.run(&store, kept.resume, kept.daemon.as_deref())?;
        if ran.skipped > 0 {
            say(&format!("skipped, already recorded: {} of {planned} cases", ran.skipped));
        }
        if ran.of_other_commits > 0 {
            let Machine { commit, .. } = Machine::here();
            say(&format!(
                "{} of these records come from another commit than {commit}; run without --resume to \
                 replace them",
                ran.of_other_commits
            ));
        }
        for (command, error) in &ran.failed {
            say(&format!("failed: {error:#}\n  to repeat: {command}"));
        }
        let lost = |record: &CaseRecord| {
            record.verdict.as_ref().is_some_and(|verdict| verdict.kind == VerdictKind::Lost)
        };
        if !ran.failed.is_empty() || ran.unkept.is_some() || ran.records.iter().any(lost) {
            code = FAILED;
        }
        records.extend(ran.records);
        let go_on = if kept.resume { again.clone() } else { format!("{again} --resume") };
        if let Some(error) = ran.unkept {
            say(&format!(
                "error: cannot keep the last record, which is on standard output only: {error:#}\n  \
                 to go on after the remedy: {go_on}"
            ));
            break;
        }
        if ran.interrupted || interrupted() {
            say(&format!(
                "interrupted: {} of {planned} cases are kept; to go on: {go_on}",
                records.len()
            ));
            code = INTERRUPTED_STATUS;
            break;
        }
    }
    print(&if kept.json { serde_json::to_string_pretty(&records)? } else { tables(&records) })?;
    Ok(code)
}

/// Records for a terminal: figures, then verdicts.
fn tables(records: &[CaseRecord]) -> String {
    let with_figures = records.iter().filter(|record| !record.figures.is_empty());
    let mut text = table::render(&with_figures.cloned().collect::<Vec<_>>());
    for record in records {
        if let Some(verdict) = &record.verdict {
            let CaseRecord { experiment, case, .. } = record;
            let name = verdict_name(verdict.kind);
            text.push_str(&format!("\n{experiment} {case}: {name}: {}", verdict.text));
        }
    }
    text
}

/// Writes the page and prints its path. Unreadable files are errors, on the page as well.
fn write_report(from: &Path, out: Option<PathBuf>) -> Result<u8> {
    let kept = Store::new(from).kept()?;
    for why in &kept.unreadable {
        say(&format!("error: {why:#}"));
    }
    ensure!(
        !(kept.records.is_empty() && kept.failures.is_empty()),
        "no record in {} (expected EXPERIMENT/CASE.json): run `{PROGRAM} bench --out DIR` first",
        from.display()
    );
    let about = |name: &str| {
        let all = experiments().iter().chain(race::experiments());
        let texts = all.filter(|experiment| experiment.name() == name).map(|one| one.about());
        Some(texts.collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
    };
    let page = report::render(&kept, &about);
    let out = out.unwrap_or_else(|| from.join("report.html"));
    std::fs::write(&out, page).with_context(|| format!("writing {}", out.display()))?;
    print(&out.display().to_string())?;
    Ok(if kept.unreadable.is_empty() { 0 } else { FAILED })
}

/// The command line of this run.
fn again() -> String {
    let arguments = std::env::args().skip(1).map(|argument| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:+".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        }
    });
    [PROGRAM.to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}
