// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is seen of an operation, and of others beside it.

use std::fmt;
use std::time::{Duration, Instant};

use super::settings::Late;

/// The name of the offline of another block, which needs the lock that offlining has.
pub(super) const OTHER_OFFLINE: &str = "other-offline";

/// The outcome of a step in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It did what was asked.
    Done,
    /// It ended without that: the name of the error, or what is missing.
    Refused(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => write!(f, "done"),
            Self::Refused(why) => write!(f, "{why}"),
        }
    }
}

/// A step in the guest that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) outcome: Outcome,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl Step {
    pub(super) fn time(&self) -> Duration {
        self.ended - self.began
    }
}

/// An operation beside a report whose acknowledgement is late.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    pub(super) late: Late,
    /// Bytes of the report that the operation is about.
    pub(super) reported: u64,
    pub(super) acknowledged: Instant,
    pub(super) operation: Step,
    /// The same once more, right after it was refused.
    pub(super) again: Option<Step>,
    /// Bytes that were left to do, by time since the operation began; of one that goes in steps.
    pub(super) left: Vec<(Duration, u64)>,
    /// By name.
    pub(super) others: Vec<(&'static str, Step)>,
    /// Operations that it took afterwards until one was done, if this one was not.
    pub(super) tries: Option<u32>,
}

impl Cell {
    /// Whether a step ended before the acknowledgement.
    pub(super) fn answers(&self, step: &Step) -> bool {
        step.ended < self.acknowledged
    }

    /// Whether memory was taken whose report was out.
    pub(super) fn takes_reported(&self) -> bool {
        let took = |step: &Step| step.outcome == Outcome::Done && self.answers(step);
        took(&self.operation) || self.again.as_ref().is_some_and(took)
    }

    /// Bytes that were left to do when the acknowledgement came.
    pub(super) fn left_at_acknowledgement(&self) -> Option<u64> {
        let until = self.acknowledged - self.operation.began;
        self.left.iter().rev().find(|(at, _)| *at <= until).map(|(_, bytes)| *bytes)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = |step: &Step| {
            let when = if self.answers(step) { "before" } else { "after" };
            format!(
                "{} after {} ms, {when} the acknowledgement",
                step.outcome,
                step.time().as_millis()
            )
        };
        let until = (self.acknowledged - self.operation.began).as_millis();
        let reported = self.reported >> 20;
        write!(f, "{}: {reported} MiB reported, acknowledged after {until} ms", self.late)?;
        write!(f, "; the operation: {}", step(&self.operation))?;
        if let Some(again) = &self.again {
            write!(f, "; once more: {}", step(again))?;
        }
        for (at, bytes) in &self.left {
            write!(f, "; {} MiB left after {} ms", bytes >> 20, at.as_millis())?;
        }
        for (name, other) in &self.others {
            write!(f, "; {name}: {}", step(other))?;
        }
        match self.tries {
            Some(tries) => write!(f, "; afterwards done at try {tries}"),
            None => Ok(()),
        }
    }
}
