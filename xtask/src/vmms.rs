// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask vmms`: which VMMs are here, and what runs on each.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use serde::Serialize;
use vmm_integration::fetch::SetupEvent;
use vmm_integration::life::{CHECKS, Check, Outcome};
use vmm_integration::vmm::{self, Vmm};

use crate::cargo::release_daemon;

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Only on this VMM; may be given several times.
    #[arg(long, value_name = "NAME")]
    vmm: Vec<String>,
    /// Only this check; may be given several times.
    #[arg(long, value_name = "NAME")]
    check: Vec<String>,
    /// Says which VMMs and checks there are, and runs none.
    #[arg(long, conflicts_with = "check")]
    list: bool,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A VMM, and what was found out about it.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Its version; none if it is not here.
    version: Option<String>,
    /// Why it is not here.
    missing: Option<String>,
    checks: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    check: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Prepares the VMMs, runs the checks on them, and prints what came of it.
///
/// # Errors
/// When a name is unknown, the daemon does not build, or a check fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let names: Vec<_> = vmm::ALL.iter().map(|vmm| vmm.name()).collect();
    let checks: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
    known("VMM", &options.vmm, &names)?;
    known("check", &options.check, &checks)?;
    let wanted = |chosen: &[String], name: &str| {
        chosen.is_empty() || chosen.iter().any(|chosen| chosen == name)
    };
    let vmms = vmm::ALL.iter().filter(|vmm| wanted(&options.vmm, vmm.name()));
    let checks = CHECKS.iter().filter(|check| !options.list && wanted(&options.check, check.name));
    let checks: Vec<_> = checks.collect();
    let daemon = if options.list { None } else { Some(release_daemon()?) };
    let rows: Vec<_> = vmms.map(|vmm| row(*vmm, &checks, daemon.as_deref())).collect();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows, &checks);
    }
    let failed = |row: &Row| {
        let failed = |cell: &&Cell| matches!(cell.outcome, Outcome::Failed { .. });
        row.checks
            .iter()
            .filter(failed)
            .map(|cell| format!("{} on {}", cell.check, row.name))
            .collect::<Vec<_>>()
    };
    let failed: Vec<_> = rows.iter().flat_map(failed).collect();
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn known(what: &str, given: &[String], all: &[&str]) -> Result<()> {
    match given.iter().find(|name| !all.contains(&name.as_str())) {
        Some(name) => bail!("no {what} is called {name:?}: expected one of {}", all.join(", ")),
        None => Ok(()),
    }
}

fn row(vmm: &dyn Vmm, checks: &[&Check], daemon: Option<&Path>) -> Row {
    let name = vmm.name();
    let prepared = vmm.prepare(&mut |event| {
        if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
            eprintln!("{name}: {text}");
        }
    });
    let (version, missing) = match prepared {
        Ok(version) => (Some(version), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let mut cells = Vec::new();
    if let (Some(daemon), None) = (daemon, &missing) {
        for check in checks.iter().filter(|check| check.is_for(vmm)) {
            eprint!("{name}: {} ... ", check.name);
            let outcome = check.run(vmm, daemon);
            eprintln!("{}", word(&outcome));
            cells.push(Cell { check: check.name, outcome });
        }
    }
    Row { name, version, missing, checks: cells }
}

fn print(rows: &[Row], checks: &[&Check]) {
    for row in rows {
        let found = row
            .version
            .clone()
            .or_else(|| row.missing.as_ref().map(|why| format!("not here: {why}")));
        println!("{}: {}", row.name, found.unwrap_or_default());
    }
    let here: Vec<_> = rows.iter().filter(|row| row.missing.is_none()).collect();
    if checks.is_empty() {
        println!();
        for check in CHECKS {
            println!("{}: {}", check.name, check.about);
        }
        return;
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(["check"].into_iter().chain(here.iter().map(|row| row.name)));
    for check in checks {
        let cells = here.iter().map(|row| {
            let cell = row.checks.iter().find(|cell| cell.check == check.name);
            cell.map_or(String::new(), |cell| word(&cell.outcome))
        });
        table.add_row(std::iter::once(check.name.to_owned()).chain(cells));
    }
    println!("\n{table}\n");
    for row in here {
        for cell in &row.checks {
            let (Outcome::Absent { why: text } | Outcome::Failed { error: text }) = &cell.outcome
            else {
                continue;
            };
            println!("{}, {}: {text}", row.name, cell.check);
        }
    }
}

/// An outcome in a cell of the table.
fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed { seconds } => format!("{seconds:.1} s"),
        Outcome::Absent { .. } => "absent".to_owned(),
        Outcome::Failed { .. } => "FAILED".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vmm: &[&str], check: &[&str]) -> Options {
        let owned = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        Options { vmm: owned(vmm), check: owned(check), list: false, json: true }
    }

    #[test]
    fn unknown_names_are_refused_before_anything_runs() {
        let error = |options| run(&options).expect_err("an unknown name").to_string();
        let vmm = error(options(&["qemu", "xen"], &[]));
        assert!(vmm.starts_with("no VMM is called \"xen\": expected one of qemu, "), "{vmm}");
        let check = error(options(&[], &["reprots"]));
        assert!(check.starts_with("no check is called \"reprots\": expected one of "), "{check}");
    }

    #[test]
    fn json_of_a_cell_says_outcome_and_reason() {
        let absent = Cell { check: "pause", outcome: Outcome::Absent { why: "so".to_owned() } };
        let json = serde_json::to_value(absent).expect("plain data");
        assert_eq!(json, serde_json::json!({ "check": "pause", "outcome": "absent", "why": "so" }));
    }
}
