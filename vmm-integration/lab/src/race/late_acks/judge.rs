// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Figures and the verdict.

use std::time::Duration;

use anyhow::{Result, bail};

use super::operation::Operation;
use super::seen::{Cell, OTHER_OFFLINE, Outcome, Step};
use super::settings::Late;
use crate::scheme::KernelScheme;
use crate::store::{Findings, Verdict, VerdictKind};

/// What an operation must do while the report of its memory is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It goes on until it has the memory, after the acknowledgement.
    Waits,
    /// It ends without the memory, before the acknowledgement.
    Refuses,
    /// It gets the memory, at once or once it was refused: known bad. `alloc_contig_range` ends the isolation
    /// of all of its range when it fails, by whatever party that is isolated, and the next one succeeds.
    Takes,
}

fn expected(operation: Operation, scheme: KernelScheme) -> Expected {
    match (operation, scheme.isolates()) {
        (Operation::Offline | Operation::VirtioMem, false) => Expected::Waits,
        (Operation::Offline, true) | (Operation::GiganticPage, false) => Expected::Refuses,
        (Operation::GiganticPage | Operation::VirtioMem, true) => Expected::Takes,
    }
}

/// The figures; an error if a run went another way than expected.
pub(super) fn findings(
    operation: Operation,
    scheme: KernelScheme,
    kernel: &str,
    cells: &[Cell],
) -> Result<Findings> {
    let mut findings = Findings::default();
    for late in Late::ALL {
        let of_late: Vec<&Cell> = cells.iter().filter(|cell| cell.late == late).collect();
        if !of_late.is_empty() {
            figures(&mut findings, late, &of_late);
        }
    }
    for cell in cells {
        if let Err(why) = judge(operation, scheme, cell) {
            bail!("{operation} beside {scheme}: {why}; {cell}");
        }
        findings.note(cell.to_string());
    }
    let (kind, what) = match expected(operation, scheme) {
        Expected::Waits => (VerdictKind::Survived, "waits until the acknowledgement"),
        Expected::Refuses => (VerdictKind::Survived, "is refused before the acknowledgement"),
        Expected::Takes => {
            (VerdictKind::AsDocumented, "takes the memory before the acknowledgement")
        }
    };
    let runs = cells.len();
    let text =
        format!("Linux {kernel}: {runs} runs; beside a report that stays out {operation} {what}");
    findings.verdict = Some(Verdict { kind, text });
    Ok(findings)
}

/// Says what went wrong in a run, if anything.
fn judge(operation: Operation, scheme: KernelScheme, cell: &Cell) -> Result<(), String> {
    let (step, expected) = (&cell.operation, expected(operation, scheme));
    if operation == Operation::VirtioMem && step.outcome != Outcome::Done {
        return Err("the driver does not come back to it".to_owned());
    }
    if cell.takes_reported() && expected != Expected::Takes {
        return Err("it took memory whose report is out".to_owned());
    }
    if cell.late != Late::Never {
        // On a busy machine what is acknowledged may be so before the operation looks.
        return Ok(());
    }
    match expected {
        Expected::Waits if cell.answers(step) || step.outcome != Outcome::Done => {
            return Err("it did not wait for the acknowledgement".to_owned());
        }
        Expected::Refuses if !cell.answers(step) || step.outcome == Outcome::Done => {
            return Err("it was not refused at once".to_owned());
        }
        Expected::Takes if !cell.takes_reported() => {
            return Err("it did not take what it is known to take".to_owned());
        }
        _ => {}
    }
    let locks = operation == Operation::Offline && expected == Expected::Waits;
    for (name, other) in &cell.others {
        if other.outcome != Outcome::Done {
            return Err(format!("{name} failed beside it"));
        }
        let waits = !cell.answers(other);
        if waits != (locks && *name == OTHER_OFFLINE) {
            let how = if waits { "waited" } else { "did not wait" };
            return Err(format!("{name} {how} for the acknowledgement"));
        }
    }
    Ok(())
}

fn figures(findings: &mut Findings, late: Late, cells: &[&Cell]) {
    let mut add = |name: &str, unit: &str, what: &str, values: Vec<f64>| {
        if let Some(middle) = median(&values) {
            findings.figure(&format!("{late}-{name}"), middle, unit, what);
        }
    };
    let times = |of: &dyn Fn(&Cell) -> Option<Duration>| -> Vec<f64> {
        cells.iter().filter_map(|cell| of(cell)).map(ms).collect()
    };
    add("operation", "ms", "that the operation took", times(&|cell| Some(cell.operation.time())));
    let after = |cell: &Cell| cell.operation.ended.checked_duration_since(cell.acknowledged);
    add("after-acknowledgement", "ms", "of these, after the acknowledgement", times(&after));
    let mib = |bytes: u64| f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
    let left = cells.iter().filter_map(|cell| cell.left_at_acknowledgement()).map(mib).collect();
    add("left", "MiB", "plugged when the acknowledgement came", left);
    let names = cells.first().map(|cell| cell.others.iter().map(|(name, _)| *name));
    for name in names.into_iter().flatten() {
        let of = |cell: &Cell| -> Option<Duration> { other(cell, name).map(Step::time) };
        add(name, "ms", &format!("that {name} took meanwhile"), times(&of));
    }
    let count = |outcome: &dyn Fn(&Outcome) -> bool| {
        let count = cells.iter().filter(|cell| outcome(&cell.operation.outcome)).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    };
    let done = |outcome: &Outcome| *outcome == Outcome::Done;
    findings.count(&format!("{late}-done"), count(&done), "", "operations that were done");
    let taken = cells.iter().filter(|cell| cell.takes_reported()).count();
    let taken = u64::try_from(taken).unwrap_or(u64::MAX);
    findings.count(
        &format!("{late}-taken"),
        taken,
        "",
        "runs that took memory whose report is out",
    );
    let refused = count(&|outcome| !done(outcome));
    findings.count(&format!("{late}-refused"), refused, "", "operations that were refused");
}

fn other<'a>(cell: &'a Cell, name: &str) -> Option<&'a Step> {
    cell.others.iter().find(|(other, _)| *other == name).map(|(_, step)| step)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let (low, high) =
        (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A cell of an acknowledgement after 5 s; the operation and the offline of another block end
    /// after so many ms.
    fn cell(outcome: Outcome, operation: u64, other: u64) -> Cell {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let step = |outcome, ms| Step { outcome, began, ended: at(ms) };
        Cell {
            late: Late::Never,
            reported: 128 << 20,
            acknowledged: at(5000),
            operation: step(outcome, operation),
            again: None,
            left: vec![(Duration::ZERO, 128 << 20), (Duration::from_secs(6), 0)],
            others: vec![
                (OTHER_OFFLINE, step(Outcome::Done, other)),
                ("allocation", step(Outcome::Done, 90)),
            ],
            tries: None,
        }
    }

    const PULL: KernelScheme = KernelScheme::SectionBitmapPull;
    const ISOLATE: KernelScheme = KernelScheme::SectionBitmapIsolate;

    #[test]
    fn offline_of_a_pull_judged_as_isolation_is_wrong() {
        let busy = || Outcome::Refused("EBUSY".to_owned());
        let pulled = cell(Outcome::Done, 5010, 5020);
        let isolated = cell(busy(), 20, 40);
        let of = |scheme, cell: &Cell| judge(Operation::Offline, scheme, cell);
        for scheme in [KernelScheme::Mainline, PULL] {
            assert_eq!(of(scheme, &pulled), Ok(()));
            of(scheme, &isolated).unwrap_err();
        }
        assert_eq!(of(ISOLATE, &isolated), Ok(()));
        assert_eq!(of(ISOLATE, &pulled).unwrap_err(), "it was not refused at once");
        assert!(of(ISOLATE, &cell(busy(), 20, 5020)).unwrap_err().contains("other-offline waited"));
        assert!(of(PULL, &cell(Outcome::Done, 5010, 40)).unwrap_err().contains("did not wait"));
    }

    #[test]
    fn memory_taken_before_acknowledgement_is_wrong() {
        for late in Late::ALL {
            let taken = Cell { late, ..cell(Outcome::Done, 4000, 40) };
            for operation in Operation::ALL {
                let why = judge(operation, PULL, &taken).unwrap_err();
                assert_eq!(why, "it took memory whose report is out", "{late} {operation}");
            }
            assert!(judge(Operation::Offline, ISOLATE, &taken).is_err());
        }
    }

    #[test]
    fn contiguous_allocation_ends_isolation_and_takes() {
        let none = || Outcome::Refused("0 of 1 pages".to_owned());
        let refused = cell(none(), 20, 40);
        let again = Some(cell(Outcome::Done, 300, 40).operation);
        let taken = Cell { again, ..refused.clone() };
        let of = |scheme, cell: &Cell| judge(Operation::GiganticPage, scheme, cell);
        assert_eq!((of(PULL, &refused), of(ISOLATE, &taken)), (Ok(()), Ok(())));
        assert!(of(PULL, &taken).unwrap_err().contains("took memory whose report is out"));
        assert!(of(ISOLATE, &refused).unwrap_err().contains("known to take"));
    }

    #[test]
    fn figures_say_what_was_left_at_acknowledgement() {
        let cells = [cell(Outcome::Done, 6000, 40), cell(Outcome::Done, 6100, 60)];
        let found = findings(Operation::VirtioMem, PULL, "7.3", &cells).unwrap();
        let value = |name: &str| found.figures[name].value.round();
        assert_eq!(value("never-operation"), 6050.0);
        assert_eq!(value("never-after-acknowledgement"), 1050.0);
        assert_eq!((value("never-left"), value("never-other-offline")), (128.0, 50.0));
        assert_eq!((value("never-done"), value("never-refused")), (2.0, 0.0));
    }
}
