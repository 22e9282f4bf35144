// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Explores the guest model: see `--help`.

#[cfg(not(feature = "shuttle"))]
fn main() {
    eprintln!("This needs the scheduler: build it with --features shuttle.");
    std::process::exit(2);
}

#[cfg(feature = "shuttle")]
fn main() -> std::process::ExitCode {
    command::main()
}

#[cfg(feature = "shuttle")]
mod command {
    use std::collections::HashMap;
    use std::process::ExitCode;
    use std::time::Instant;

    use explore::scenarios::reporting::catalogue;
    use explore::{search, table};

    const HELP: &str = "\
Runs the guest model under schedules that are drawn from seeds, and tells which invariant broke.

cargo explore [options]

  (nothing)                 searches every configuration and prints what it finds
  --table FILE              the same, and writes it down as a page
  --schedules N             until something wrong has to show (200000)
  --least N                 schedules that the good ones stand (50000); never less than ten times
                            what the slowest of the wrong ones took
  --preemptions N           of the exhaustive search of the smallest scenario (3)
  --list                    the configurations by name
  --scenario NAME           only this one
    --seed N                  one schedule: repeats what was found
    --exhaustive              every schedule with at most --preemptions N, instead of drawn ones

For example, which schedule loses a report if `section-bit` clears its bit after the scan:
  cargo explore --scenario section-bit-cleared-after-scan
and that schedule again:
  cargo explore --scenario section-bit-cleared-after-scan --seed 0

What is found is a finding about the model, not about Linux.";

    pub(crate) fn main() -> ExitCode {
        match run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error}\n\n{HELP}");
                ExitCode::from(2)
            }
        }
    }

    /// Whether everything is as it has to be.
    fn run() -> Result<bool, String> {
        let mut options = HashMap::new();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let value = match argument.as_str() {
                "--help" | "-h" => {
                    println!("{HELP}");
                    return Ok(true);
                }
                "--list" => {
                    for configuration in catalogue::all() {
                        println!("{:46} {}", configuration.name, configuration.about);
                    }
                    return Ok(true);
                }
                "--exhaustive" => String::new(),
                "--table" | "--schedules" | "--least" | "--preemptions" | "--scenario"
                | "--seed" => arguments.next().ok_or(format!("{argument} needs a value"))?,
                _ => return Err(format!("{argument} is no option")),
            };
            options.insert(argument, value);
        }
        let number = |name: &str, default: u64| {
            let parse = |value: &String| {
                value.parse().map_err(|_| format!("{name} needs a number, not {value}"))
            };
            options.get(name).map_or(Ok(default), parse)
        };
        let effort = table::Effort {
            seed: 0,
            most: number("--schedules", 200_000)?,
            least: number("--least", 50_000)?,
            preemptions: usize::try_from(number("--preemptions", 3)?).unwrap_or(usize::MAX),
            most_exhaustive: 2_000_000,
        };
        let Some(name) = options.get("--scenario") else {
            let start = Instant::now();
            let results = table::search_all(effort, |row| println!("{}", row.line()));
            if let Some(path) = options.get("--table") {
                std::fs::write(path, table::markdown(&results, start.elapsed()))
                    .map_err(|error| format!("{path}: {error}"))?;
            }
            return Ok(results.rows().all(table::Row::as_expected));
        };
        let configuration = catalogue::by_name(name).ok_or(format!("{name} is none of --list"))?;
        let found = if options.contains_key("--exhaustive") {
            search::exhaustive(&configuration, effort.preemptions, effort.most_exhaustive)
        } else if options.contains_key("--seed") {
            let seed = number("--seed", 0)?;
            search::random(&configuration, seed..seed + 1, None)
        } else {
            search::random(&configuration, 0..effort.most, None)
        };
        let row = table::Row { configuration, found };
        println!("{}", row.line());
        Ok(row.as_expected())
    }
}
