// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Explores the models: see `--help`.

use core::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum, builder::PossibleValuesParser};
use explore::rounds::first_to_fall;
use explore::strategies::Strategy;
use explore::table::{self, Effort, Row};
use explore::{Case, Entry, Kind, MODELS, cost};

const EXAMPLES: &str = "\
Examples:
  cargo explore --model reporting --list
      names its configurations and what each of them is
  cargo explore --model reporting --configuration section-bit-cleared-after-scan
      finds a schedule that loses a report, because the bit is cleared after the scan
  cargo explore --model reporting --configuration section-bit-cleared-after-scan --seed 5
      repeats one schedule: take the seed from the output of the search
  cargo explore --configuration section-bit-smallest --strategy bounded-preemptions
      runs every schedule with at most three preemptions
  cargo explore --configuration 'section-bit-*' --first --json
      searches the good configurations of a tracker, until the first falls
  cargo explore --cost
      counts the atomic operations of an allocation and an update, by scheme
  cargo explore --model reporting --table docs/research/exploration
      searches all of a model and writes its page; takes minutes

A configuration that is known to break an invariant must break it, and a good one must stand. The exit
status is 0 if so, 1 if not, 2 for a wrong command line.

With --json each configuration is an object on a line of its own:
  model, configuration, kind (good, known-bad, candidate)
  schedules    that were run; cut_off of them showed nothing, because an actor spun
  complete     whether there are no other schedules
  as_expected  whether a good configuration stood, or another one broke what it should
  seed, invariant, what
               of the schedule that broke an invariant; null if none did
With --cost each count is an object:
  model, scheme, policy (of the allocation's VMA: bind or none), what
               what was done once: fast-walk (the first walk serves the allocation from the first zone),
               far-walk (the first zone is not allowed), slow-walk (every zone is below its low watermark,
               and the second walk serves it), update (of a cpuset with a task)
  cost         loads, stores, rmws (read-modify-writes), locks; of these and of fences: acquires,
               releases, full-barriers (sequentially consistent stores and fences)

A finding is a finding about the model. It says nothing of Linux until a real guest shows it.";

/// Search the interleavings of a model for one that breaks an invariant
///
/// A model is a small world with actors in it. A scheduler that owns every step runs them in one
/// order after another, each drawn from a seed, until an invariant breaks.
#[derive(Debug, Parser)]
#[command(name = "explore", bin_name = "cargo explore", after_help = EXAMPLES, version)]
struct Arguments {
    /// Model to search [default: every model]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(MODELS.iter().map(|model| model.name)))]
    model: Option<String>,

    /// Configurations to search, by name; in a name * stands for any characters [default: every
    /// configuration of the model]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    configuration: Vec<String>,

    /// Search only the good ones of them, in rounds of rising numbers of schedules, until the first
    /// falls
    #[arg(long, conflicts_with_all = ["seed", "table"])]
    first: bool,

    /// Run only the schedule of this seed, to repeat what a search has found with the same strategy
    #[arg(long, value_name = "NUMBER", requires = "configuration")]
    seed: Option<u64>,

    /// How schedules are chosen
    #[arg(long, value_enum, default_value_t = Choice::Mixed, requires_if("bounded-preemptions", "configuration"))]
    strategy: Choice,

    /// Preemptions in a schedule, at most, where every schedule is taken
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    preemptions: usize,

    /// Schedules in which what is known to be wrong must show
    #[arg(long, value_name = "NUMBER", default_value_t = 200_000)]
    schedules: u64,

    /// Schedules that each good configuration stands; never less than ten times as many as the
    /// slowest of the wrong ones took
    #[arg(long, value_name = "NUMBER", default_value_t = 20_000, conflicts_with = "configuration")]
    least: u64,

    /// Configurations to search side by side; the results do not depend on it [default: number of CPUs]
    #[arg(long, value_name = "NUMBER", conflicts_with = "configuration")]
    jobs: Option<NonZero<usize>>,

    /// Directory that the results are written to, as a page in Markdown for each model
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["configuration", "strategy"])]
    table: Option<PathBuf>,

    /// List the configurations and exit
    #[arg(long, conflicts_with_all = ["configuration", "table"])]
    list: bool,

    /// Count the atomic operations of an allocation by scheme, on one thread, and exit
    #[arg(long, conflicts_with_all = ["model", "configuration", "first", "table", "list"])]
    cost: bool,

    /// Print results as JSON, a line a configuration or a count
    #[arg(long, conflicts_with_all = ["list", "table"])]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Random schedules and those of PCT in turn
    Mixed,
    /// Any actor is as likely to run next, or the current one is likely to stay
    Random,
    /// Probabilistic concurrency testing: priorities that change at a few steps
    Pct,
    /// Every schedule with at most --preemptions preemptions
    BoundedPreemptions,
}

impl Arguments {
    fn strategy(&self) -> Strategy {
        match self.strategy {
            Choice::Mixed => Strategy::Mixed,
            Choice::Random => Strategy::Random,
            Choice::Pct => Strategy::Pct,
            Choice::BoundedPreemptions => Strategy::BoundedPreemptions(self.preemptions),
        }
    }

    fn models(&self) -> impl Iterator<Item = &'static Entry> {
        MODELS.iter().filter(|model| self.model.as_ref().is_none_or(|name| name == model.name))
    }

    fn effort(&self) -> Effort {
        Effort {
            strategy: self.strategy(),
            most: self.schedules,
            least: self.least,
            margin: table::MARGIN,
            preemptions: self.preemptions,
            most_exhaustive: 2_000_000,
            jobs: self.jobs.unwrap_or_else(table::jobs),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every configuration does as it should.
fn run(arguments: &Arguments) -> Result<bool, String> {
    if arguments.cost {
        let all = cost::count_all()?;
        if arguments.json {
            all.iter().for_each(|counted| println!("{}", counted.json()));
        } else {
            println!("{}", cost::table(&all));
        }
        return Ok(true);
    }
    if arguments.list {
        for case in arguments.models().flat_map(|model| (model.cases)()) {
            println!("{:18} {:48} {}", case.model, case.name, case.about);
        }
        return Ok(true);
    }
    let chosen = chosen(arguments)?;
    if arguments.first {
        let good: Vec<_> = chosen.into_iter().filter(|case| case.kind == Kind::Good).collect();
        if good.is_empty() {
            return Err("--first searches good configurations, and none is named".to_owned());
        }
        let rows = first_to_fall(good, arguments.strategy(), arguments.schedules);
        rows.iter().for_each(|row| print(row, arguments));
        return Ok(rows.iter().all(Row::as_expected));
    }
    if !arguments.configuration.is_empty() {
        let numbers = match arguments.seed {
            Some(seed) => seed..seed.saturating_add(1),
            None => 0..arguments.schedules,
        };
        let search = |case| {
            let row = Row::search(case, arguments.strategy(), numbers.clone());
            print(&row, arguments);
            row.as_expected()
        };
        // Each of them, also behind one that is not as expected.
        return Ok(chosen.into_iter().map(search).fold(true, |all, one| all & one));
    }
    let mut as_expected = true;
    for model in arguments.models() {
        let start = Instant::now();
        let results = table::search_all(model, arguments.effort(), |row| print(row, arguments));
        if let Some(directory) = &arguments.table {
            let path = directory.join(format!("{}.md", model.name));
            std::fs::write(&path, table::markdown(&results, start.elapsed()))
                .map_err(|error| format!("writing {}: {error}", path.display()))?;
        }
        as_expected &= results.rows().all(Row::as_expected);
    }
    Ok(as_expected)
}

/// The configurations that the patterns name, all of them without one.
fn chosen(arguments: &Arguments) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = arguments.models().flat_map(|model| (model.cases)()).collect();
    let patterns = &arguments.configuration;
    for pattern in patterns {
        if !cases.iter().any(|case| case.is_named(pattern)) {
            return Err(format!("no configuration is called {pattern:?}; --list has their names"));
        }
    }
    if !patterns.is_empty() {
        cases.retain(|case| patterns.iter().any(|pattern| case.is_named(pattern)));
    }
    if arguments.seed.is_some() && cases.len() != 1 {
        return Err(format!("--seed repeats one configuration (got {})", cases.len()));
    }
    Ok(cases)
}

fn print(row: &Row, arguments: &Arguments) {
    if arguments.json {
        println!("{}", row.json());
        return;
    }
    println!("{}", row.line());
    let one = !arguments.configuration.is_empty() || arguments.first;
    if one && arguments.seed.is_none() && row.found.violation.is_some() {
        let strategy = match arguments.strategy {
            Choice::Mixed => String::new(),
            Choice::Random => " --strategy random".to_owned(),
            Choice::Pct => " --strategy pct".to_owned(),
            Choice::BoundedPreemptions => {
                format!(" --strategy bounded-preemptions --preemptions {}", arguments.preemptions)
            }
        };
        println!("again: {}{strategy}", row.replay());
    }
}
