//! `balloon-lab`: measures ways to report free pages, and looks for what goes wrong.
//!
//! `cargo xtask lab` builds it with the daemon and runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use vmm_integration::lab::bench::experiments;
use vmm_integration::lab::experiment::{Experiment, Plan, Request};
use vmm_integration::lab::faults::plan::{Fault, FaultPlan};
use vmm_integration::lab::parameters::Length;
use vmm_integration::lab::progress::{INTERRUPTED_STATUS, watch_for_interrupts};
use vmm_integration::lab::race;
use vmm_integration::lab::report::verdict_name;
use vmm_integration::lab::store::{CaseRecord, Store};
use vmm_integration::lab::{PROGRAM, report, table};

/// Measures ways to report free pages, over any guest, and keeps what it finds.
#[derive(Parser)]
#[command(name = "balloon-lab", bin_name = PROGRAM)]
struct Lab {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the experiments with their parameters.
    List,
    /// Runs experiments and keeps what they find.
    Bench(Bench),
    /// Races memory offlining and faults of the backend against reporting.
    Race(Race),
    /// Makes one page of what was kept: tables, curves, maps, and how to get them again.
    Report {
        /// Where records are kept.
        #[arg(long, value_name = "DIR", default_value = "target/lab")]
        from: PathBuf,
        /// The page; by default report.html in that folder.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Bench {
    /// Which experiments; all of them by default.
    #[arg(value_name = "NAME")]
    experiments: Vec<String>,
    /// Runs only this case of them. May be given several times.
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<String>,
    /// Sets a parameter of whichever of the experiments has it. May be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// What random numbers begin with.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A short run: seconds a case. This is the default.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// A long run, for figures to quote.
    #[arg(long)]
    full: bool,
    /// Where records are kept.
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    out: PathBuf,
    /// Goes on: what is kept there of a run with the same seed and parameters is not run again.
    #[arg(long)]
    resume: bool,
    /// The daemon; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Prints records as JSON, one array, instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Race {
    #[command(flatten)]
    run: Bench,
    /// How often a memory block goes offline and online.
    #[arg(long, value_name = "N")]
    cycles: Option<u64>,
    /// A fault plan in TOML, run instead of the races.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// A fault, such as `delay-ack:after=3,ms=500`. May be given several times.
    #[arg(long, value_name = "KIND[:FIELD=VALUE,..]")]
    fault: Vec<String>,
}

/// A command line that cannot be followed.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let done = match Lab::parse().command {
        Command::List => list(),
        Command::Bench(bench) => run("bench", experiments(), &bench),
        Command::Race(race) => run_race(race),
        Command::Report { from, out } => write_report(from, out),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<ExitCode> {
    for experiment in experiments().iter().chain(race::experiments()) {
        println!("{}\n  {}", experiment.name(), experiment.about());
        for parameter in experiment.parameters() {
            println!(
                "    {}: {}; {}. Quick: {}, full: {}",
                parameter.name, parameter.what, parameter.kind, parameter.quick, parameter.full
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn run_race(race: Race) -> Result<ExitCode> {
    let Race { run: mut options, cycles, faults, fault } = race;
    options.set.extend(cycles.map(|cycles| format!("cycles={cycles}")));
    if faults.is_none() && fault.is_empty() {
        return run("race", race::experiments(), &options);
    }
    let plan = || {
        let mut all = faults.as_deref().map_or(Ok(FaultPlan::default()), FaultPlan::read)?.faults;
        for flag in &fault {
            all.push(Fault::parse(flag)?);
        }
        FaultPlan::new(all)
    };
    match plan() {
        Ok(plan) => run("race", &[race::Planned::new(plan)], &options),
        Err(error) => {
            eprintln!("error: {:#}", anyhow::Error::new(error));
            Ok(ExitCode::from(USAGE))
        }
    }
}

fn run(
    verb: &'static str,
    experiments: &[&'static dyn Experiment],
    bench: &Bench,
) -> Result<ExitCode> {
    let request = Request {
        verb,
        experiments: bench.experiments.clone(),
        cases: bench.cases.clone(),
        set: bench.set.clone(),
        seed: bench.seed,
        length: if bench.full { Length::Full } else { Length::Quick },
    };
    let plan = match Plan::new(experiments, &request) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    watch_for_interrupts()?;
    let again = again();
    eprintln!("{} cases into {}; again: {again}", plan.len(), bench.out.display());
    let store = Store::new(&bench.out);
    let ran = plan.run(&store, bench.resume, bench.daemon.as_deref())?;
    if bench.json {
        println!("{}", serde_json::to_string_pretty(&ran.records)?);
    } else {
        let with_figures = ran.records.iter().filter(|record| !record.figures.is_empty());
        println!("{}", table::render(&with_figures.cloned().collect::<Vec<_>>()));
        for record in &ran.records {
            if let Some(verdict) = &record.verdict {
                let CaseRecord { experiment, case, .. } = record;
                println!("{experiment} {case}: {}: {}", verdict_name(verdict.kind), verdict.text);
            }
        }
    }
    if ran.skipped > 0 {
        eprintln!("{} cases were kept from before", ran.skipped);
    }
    for (command, error) in &ran.failed {
        eprintln!("failed: {error:#}\n  again: {command}");
    }
    if ran.interrupted {
        let go_on = if bench.resume { again } else { format!("{again} --resume") };
        eprintln!(
            "interrupted: {} of {} cases are kept; to go on: {go_on}",
            ran.records.len(),
            plan.len()
        );
        return Ok(ExitCode::from(INTERRUPTED_STATUS));
    }
    Ok(if ran.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_report(from: PathBuf, out: Option<PathBuf>) -> Result<ExitCode> {
    let records = Store::new(&from).records()?;
    let about = |name: &str| {
        let found = experiments().iter().find(|experiment| experiment.name() == name);
        found.map(|experiment| experiment.about().to_owned())
    };
    let page = report::render(&records, &about)?;
    let out = out.unwrap_or_else(|| from.join("report.html"));
    std::fs::write(&out, page).with_context(|| format!("writing {}", out.display()))?;
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
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
