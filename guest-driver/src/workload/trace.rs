// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Traces: allocations and frees with their times, as a text file.
//!
//! One event a line, in the order of time; what follows a `#` is a comment:
//!
//! ```text
//! # time_us cpu alloc id order [movable|unmovable]
//! 0 0 alloc 1 9
//! 125 1 alloc 2 0 unmovable
//! 4000 1 free 1
//! ```

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::collections::BTreeMap;

/// The largest order that an event may name: that of Linux's largest buddy.
const MAX_ORDER: u8 = 10;
/// The most CPUs: each is a thread.
const MAX_CPUS: usize = 1024;

/// What an event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allocates a block.
    Alloc {
        /// Its size.
        order: u8,
        /// Whether its pages can be moved.
        movable: bool,
    },
    /// Frees the block of that name.
    Free,
}

/// One line of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// From the start of the trace, in whole microseconds.
    pub at: Duration,
    /// On which CPU.
    pub cpu: usize,
    /// The name of the block, which may be used again once it is free.
    pub id: u64,
    /// What is done.
    pub action: Action,
}

/// Allocations and frees in the order of time. No name is in use twice, and nothing is freed that
/// was not allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    events: Vec<TraceEvent>,
    cpus: usize,
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// Counted from one; for events that were not read, their number.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It ends too soon.
    #[error("{field} is missing")]
    Missing {
        /// What should have come.
        field: &'static str,
    },
    /// Something stands there that should not.
    #[error("{field} is `{found}` where {expected} was expected")]
    Field {
        /// Which.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// It goes on behind its end.
    #[error("`{0}` is too much")]
    TooMuch(String),
    /// It comes before the line ahead of it.
    #[error("time goes back, from {from} to {to} microseconds")]
    TimeGoesBack {
        /// Of the event before.
        from: u128,
        /// Of this one.
        to: u128,
    },
    /// The name is another block's.
    #[error("id {0} is allocated and not freed yet")]
    InUse(u64),
    /// No block has the name.
    #[error("id {0} is freed and was not allocated")]
    NotInUse(u64),
}

impl Trace {
    /// A trace of these events.
    ///
    /// # Errors
    /// [`TraceError`] if they are not in order or do not go together.
    pub fn new(events: Vec<TraceEvent>) -> Result<Self, TraceError> {
        let mut checker = Checker::default();
        for (index, event) in events.iter().enumerate() {
            checker.check(event).map_err(|problem| TraceError { line: index + 1, problem })?;
        }
        Ok(Self { events, cpus: checker.cpus })
    }

    /// Its events.
    pub fn events(&self) -> &[TraceEvent] {
        &self.events
    }

    /// How many CPUs it takes.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// How long it takes.
    pub fn duration(&self) -> Duration {
        self.events.last().map_or(Duration::ZERO, |event| event.at)
    }

    /// The most pages that are allocated at once.
    pub fn peak_pages(&self) -> u64 {
        let (mut now, mut peak, mut sizes) = (0, 0, BTreeMap::new());
        for event in &self.events {
            match event.action {
                Action::Alloc { order, .. } => {
                    sizes.insert(event.id, 1_u64 << order);
                    now += 1_u64 << order;
                }
                Action::Free => now -= sizes.remove(&event.id).unwrap_or(0),
            }
            peak = peak.max(now);
        }
        peak
    }
}

/// What has to hold from one event to the next.
#[derive(Default)]
struct Checker {
    at: Duration,
    in_use: std::collections::HashSet<u64>,
    cpus: usize,
}

impl Checker {
    fn check(&mut self, event: &TraceEvent) -> Result<(), Problem> {
        let TraceEvent { at, cpu, id, action } = *event;
        if at < self.at {
            return Err(Problem::TimeGoesBack { from: self.at.as_micros(), to: at.as_micros() });
        }
        let out_of_range = |field, found: &dyn fmt::Display, expected| {
            Err(Problem::Field { field, found: found.to_string(), expected })
        };
        if cpu >= MAX_CPUS {
            return out_of_range("cpu", &cpu, "a number below 1024");
        }
        match action {
            Action::Alloc { order, .. } if order > MAX_ORDER => {
                return out_of_range("order", &order, "an order up to 10");
            }
            Action::Alloc { .. } if !self.in_use.insert(id) => return Err(Problem::InUse(id)),
            Action::Free if !self.in_use.remove(&id) => return Err(Problem::NotInUse(id)),
            Action::Alloc { .. } | Action::Free => {}
        }
        self.at = at;
        self.cpus = self.cpus.max(cpu + 1);
        Ok(())
    }
}

impl FromStr for Trace {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let (mut events, mut checker) = (Vec::new(), Checker::default());
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let mut fields = line.split_ascii_whitespace().peekable();
            if fields.peek().is_none() {
                continue;
            }
            let event = parse_event(fields)
                .and_then(|event| checker.check(&event).map(|()| event))
                .map_err(|problem| TraceError { line: index + 1, problem })?;
            events.push(event);
        }
        Ok(Self { events, cpus: checker.cpus })
    }
}

fn parse_event<'a>(mut fields: impl Iterator<Item = &'a str>) -> Result<TraceEvent, Problem> {
    let at = Duration::from_micros(number(&mut fields, "time_us")?);
    let cpu = number(&mut fields, "cpu")?;
    let verb = fields.next().ok_or(Problem::Missing { field: "action" })?;
    let alloc = match verb {
        "alloc" => true,
        "free" => false,
        found => return Err(bad("action", found, "alloc or free")),
    };
    let id = number(&mut fields, "id")?;
    let action = if alloc {
        let order = number(&mut fields, "order")?;
        let movable = match fields.next() {
            None | Some("movable") => true,
            Some("unmovable") => false,
            Some(found) => return Err(bad("mobility", found, "movable or unmovable")),
        };
        Action::Alloc { order, movable }
    } else {
        Action::Free
    };
    match fields.next() {
        Some(more) => Err(Problem::TooMuch(more.to_owned())),
        None => Ok(TraceEvent { at, cpu, id, action }),
    }
}

fn number<'a, N: FromStr>(
    fields: &mut impl Iterator<Item = &'a str>,
    field: &'static str,
) -> Result<N, Problem> {
    let found = fields.next().ok_or(Problem::Missing { field })?;
    found.parse().map_err(|_| bad(field, found, "a number"))
}

fn bad(field: &'static str, found: &str, expected: &'static str) -> Problem {
    Problem::Field { field, found: found.to_owned(), expected }
}

/// As a text that can be read again.
impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# time_us cpu alloc id order [movable|unmovable], or time_us cpu free id")?;
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, cpu, id, action } = self;
        let at = at.as_micros();
        match action {
            Action::Alloc { order, movable: true } => write!(f, "{at} {cpu} alloc {id} {order}"),
            Action::Alloc { order, .. } => write!(f, "{at} {cpu} alloc {id} {order} unmovable"),
            Action::Free => write!(f, "{at} {cpu} free {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Trace>().unwrap_err().to_string()
    }

    #[test]
    fn a_trace_is_read_and_written() {
        let text = "# two blocks\n0 0 alloc 1 9\n\n 5 1 alloc 2 0 unmovable # a page table\n\
                    7 1 free 1\n7 0 alloc 1 3 movable\n9 0 free 2\n";
        let trace: Trace = text.parse().unwrap();
        assert_eq!(trace.events().len(), 5);
        let alloc = Action::Alloc { order: 0, movable: false };
        let second = TraceEvent { at: Duration::from_micros(5), cpu: 1, id: 2, action: alloc };
        assert_eq!(trace.events()[1], second);
        assert_eq!((trace.cpus(), trace.peak_pages()), (2, 513));
        assert_eq!(trace.duration(), Duration::from_micros(9));
        assert_eq!(trace.to_string().parse(), Ok(trace));
    }

    #[test]
    fn what_is_no_trace_is_told_by_line_and_field() {
        assert_eq!(error("# nothing\n0"), "line 2: cpu is missing");
        assert_eq!(error("0 0"), "line 1: action is missing");
        assert_eq!(error("0 0 alloc 1"), "line 1: order is missing");
        let expected = "line 1: time_us is `-1` where a number was expected";
        assert_eq!(error("-1 0 free 1"), expected);
        let expected = "line 1: action is `drop` where alloc or free was expected";
        assert_eq!(error("0 0 drop 1"), expected);
        let expected = "line 1: order is `11` where an order up to 10 was expected";
        assert_eq!(error("0 0 alloc 1 11"), expected);
        let expected = "line 1: cpu is `1024` where a number below 1024 was expected";
        assert_eq!(error("0 1024 alloc 1 0"), expected);
        let expected = "line 1: mobility is `maybe` where movable or unmovable was expected";
        assert_eq!(error("0 0 alloc 1 0 maybe"), expected);
        assert_eq!(error("0 0 alloc 1 0 movable 2"), "line 1: `2` is too much");
        assert_eq!(error("0 0 alloc 1 0\n0 0 free 1 0"), "line 2: `0` is too much");
        let expected = "line 2: id 1 is allocated and not freed yet";
        assert_eq!(error("0 0 alloc 1 0\n1 0 alloc 1 0"), expected);
        assert_eq!(error("0 0 free 1"), "line 1: id 1 is freed and was not allocated");
        let expected = "line 2: time goes back, from 5 to 4 microseconds";
        assert_eq!(error("5 0 alloc 1 0\n4 0 free 1"), expected);
    }
}
