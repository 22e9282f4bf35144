// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be set in an experiment.
//!
//! A value is checked before anything runs. What is said of a wrong one names it, what came and what
//! was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One thing that can be set.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// As in `--set NAME=VALUE`.
    pub name: &'static str,
    /// What it is, for a list.
    pub what: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Its value in a short run.
    pub quick: &'static str,
    /// Its value in a long run.
    pub full: &'static str,
}

/// What a parameter takes. Bounds are inclusive.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number.
    Number(u64, u64),
    /// A number, with a decimal point if need be.
    Real(f64, f64),
    /// A size in bytes with an optional unit: K, M, G or T, each 1024 of the one before.
    Bytes(u64, u64),
    /// One of these or several, separated by commas.
    Choices(&'static [&'static str]),
    /// Sizes as in [`Kind::Bytes`], one or several, separated by commas.
    Sizes(u64, u64),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number(min, max) => write!(f, "a whole number from {min} to {max}"),
            Self::Real(min, max) => write!(f, "a number from {min} to {max}"),
            Self::Bytes(min, max) => {
                write!(f, "a size from {} to {}, such as 512M or 4G", Size(min), Size(max))
            }
            Self::Choices(of) => write!(f, "one or several of {}", of.join(", ")),
            Self::Sizes(min, max) => {
                write!(f, "sizes from {} to {}, such as 512M,4G", Size(min), Size(max))
            }
        }
    }
}

/// A size as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.into_iter().find(|&(_, shift)| whole(shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let unit = text.chars().last().map(|last| last.to_ascii_uppercase());
        let unit = UNITS.into_iter().find(|&(letter, _)| Some(letter) == unit);
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], shift),
            None => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| ())?;
        number.checked_mul(1 << shift).map(Self).ok_or(())
    }
}

/// A checked value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(u64),
    Real(f64),
    Bytes(u64),
    Choices(Vec<&'static str>),
    Sizes(Vec<u64>),
}

impl Kind {
    fn parse(self, text: &str) -> Option<Value> {
        let text = text.trim();
        let size = |text: &str, min, max| {
            let Size(bytes) = text.parse().ok()?;
            (min..=max).contains(&bytes).then_some(bytes)
        };
        match self {
            Self::Number(min, max) => {
                let number = text.parse().ok()?;
                (min..=max).contains(&number).then_some(Value::Number(number))
            }
            Self::Real(min, max) => {
                let number: f64 = text.parse().ok()?;
                (min..=max).contains(&number).then_some(Value::Real(number))
            }
            Self::Bytes(min, max) => size(text, min, max).map(Value::Bytes),
            Self::Choices(of) => {
                let known = |one: &str| of.iter().copied().find(|known| *known == one.trim());
                each_once(text.split(',').map(known)).map(Value::Choices)
            }
            Self::Sizes(min, max) => {
                each_once(text.split(',').map(|one| size(one.trim(), min, max))).map(Value::Sizes)
            }
        }
    }
}

/// All of them, if they are all something; what comes again is left out.
fn each_once<T: PartialEq>(all: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut once = Vec::new();
    for one in all {
        let one = one?;
        if !once.contains(&one) {
            once.push(one);
        }
    }
    Some(once)
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Real(number) => write!(f, "{number}"),
            Self::Bytes(bytes) => write!(f, "{}", Size(*bytes)),
            Self::Choices(chosen) => f.write_str(&chosen.join(",")),
            Self::Sizes(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(|size| Size(*size).to_string()).collect();
                f.write_str(&sizes.join(","))
            }
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Seconds, for a look and for CI.
    Quick,
    /// Minutes, for figures to quote.
    Full,
}

/// Why a run was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No such experiment.
    #[error("there is no experiment {name:?}: expected one of {known}")]
    Experiment {
        /// What came.
        name: String,
        /// What there is.
        known: String,
    },
    /// No such case.
    #[error(
        "experiment {experiment} has no case {name:?} with these parameters: expected one of {known}"
    )]
    Case {
        /// Of which experiment.
        experiment: String,
        /// What came.
        name: String,
        /// What there is.
        known: String,
    },
    /// `--set` with something that is no assignment.
    #[error("--set {text:?}: expected NAME=VALUE")]
    Form {
        /// What came.
        text: String,
    },
    /// No such parameter in any of the chosen experiments.
    #[error("there is no parameter {name:?} in {experiments}: expected one of {known}")]
    Name {
        /// What came.
        name: String,
        /// The chosen experiments.
        experiments: String,
        /// What there is.
        known: String,
    },
    /// A value that the parameter does not take.
    #[error("parameter {name} is {value:?}: expected {expected}")]
    Value {
        /// The parameter.
        name: String,
        /// What came.
        value: String,
        /// What it takes.
        expected: String,
    },
}

/// What was set, as `NAME=VALUE`, in its order.
///
/// # Errors
/// [`PlanError::Form`].
pub fn assignments(texts: &[String]) -> Result<Vec<(String, String)>, PlanError> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(PlanError::Form { text: text.clone() }),
        })
        .collect()
}

/// The values of all parameters of one experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    values: BTreeMap<&'static str, Value>,
    /// Those that are not what this length has.
    changed: Vec<&'static str>,
}

impl Settings {
    /// The values for a run of `length` with `set`, of which names that are not of `parameters` are
    /// passed over.
    ///
    /// # Errors
    /// [`PlanError::Value`].
    pub fn new(
        parameters: &[Parameter],
        length: Length,
        set: &[(String, String)],
    ) -> Result<Self, PlanError> {
        let mut settings = Self { values: BTreeMap::new(), changed: Vec::new() };
        for parameter in parameters {
            let default = match length {
                Length::Quick => parameter.quick,
                Length::Full => parameter.full,
            };
            let given = set.iter().rev().find(|(name, _)| name == parameter.name);
            let text = given.map_or(default, |(_, value)| value);
            let parse = |text: &str| {
                parameter.kind.parse(text).ok_or_else(|| PlanError::Value {
                    name: parameter.name.to_owned(),
                    value: text.to_owned(),
                    expected: parameter.kind.to_string(),
                })
            };
            let value = parse(text)?;
            if value != parse(default)? {
                settings.changed.push(parameter.name);
            }
            settings.values.insert(parameter.name, value);
        }
        Ok(settings)
    }

    fn value(&self, name: &str) -> &Value {
        match self.values.get(name) {
            Some(value) => value,
            None => unreachable!("the experiment has not declared its parameter {name}"),
        }
    }

    /// A [`Kind::Number`].
    pub fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Number(number) => *number,
            other => unreachable!("{name} is {other:?} and no number"),
        }
    }

    /// A [`Kind::Number`] as a count of things in memory.
    pub fn count(&self, name: &str) -> usize {
        // Bounds of parameters lie far below what a pointer can count.
        usize::try_from(self.number(name)).unwrap_or(usize::MAX)
    }

    /// A [`Kind::Real`].
    pub fn real(&self, name: &str) -> f64 {
        match self.value(name) {
            Value::Real(number) => *number,
            other => unreachable!("{name} is {other:?} and no such number"),
        }
    }

    /// A [`Kind::Bytes`].
    pub fn bytes(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Bytes(bytes) => *bytes,
            other => unreachable!("{name} is {other:?} and no size"),
        }
    }

    /// A [`Kind::Choices`].
    pub fn choices(&self, name: &str) -> &[&'static str] {
        match self.value(name) {
            Value::Choices(chosen) => chosen,
            other => unreachable!("{name} is {other:?} and no choice"),
        }
    }

    /// A [`Kind::Sizes`].
    pub fn sizes(&self, name: &str) -> &[u64] {
        match self.value(name) {
            Value::Sizes(sizes) => sizes,
            other => unreachable!("{name} is {other:?} and no sizes"),
        }
    }

    /// All of them as text, for the record.
    pub fn texts(&self) -> BTreeMap<String, String> {
        self.values.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
    }

    /// The arguments that make these settings out of the defaults.
    pub fn arguments(&self) -> String {
        let set = |name: &&str| format!(" --set {name}={}", self.value(name));
        self.changed.iter().map(set).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: [Parameter; 4] = [
        Parameter {
            name: "rounds",
            what: "how often",
            kind: Kind::Number(1, 10),
            quick: "2",
            full: "8",
        },
        Parameter {
            name: "memory",
            what: "of the guest",
            kind: Kind::Bytes(1 << 20, 1 << 40),
            quick: "1G",
            full: "32G",
        },
        Parameter {
            name: "tracker",
            what: "which",
            kind: Kind::Choices(&["a", "b"]),
            quick: "a,b",
            full: "a,b",
        },
        Parameter {
            name: "delay",
            what: "until a pass",
            kind: Kind::Real(0.1, 60.0),
            quick: "2",
            full: "2",
        },
    ];

    fn settings(set: &[&str]) -> Result<Settings, PlanError> {
        let set: Vec<String> = set.iter().map(|&text| text.to_owned()).collect();
        Settings::new(&PARAMETERS, Length::Quick, &assignments(&set)?)
    }

    #[test]
    fn what_is_not_set_has_the_value_of_its_length() {
        let quick = settings(&["tracker=b"]).unwrap();
        assert_eq!((quick.number("rounds"), quick.bytes("memory")), (2, 1 << 30));
        assert_eq!(quick.choices("tracker"), ["b"]);
        assert!((quick.real("delay") - 2.0).abs() < f64::EPSILON);
        assert_eq!(quick.arguments(), " --set tracker=b");
        let full = Settings::new(&PARAMETERS, Length::Full, &[]).unwrap();
        assert_eq!((full.number("rounds"), full.bytes("memory")), (8, 32 << 30));
        assert_eq!(full.arguments(), "");
    }

    #[test]
    fn what_repeats_a_run_gives_the_same_settings() {
        let first = settings(&["memory=3145728", "delay=0.5", "rounds=3", "rounds=4"]).unwrap();
        assert_eq!(first.arguments(), " --set rounds=4 --set memory=3M --set delay=0.5");
        let arguments = first.arguments();
        let again: Vec<&str> = arguments.split(" --set ").skip(1).collect();
        assert_eq!(settings(&again).unwrap(), first);
    }

    #[test]
    fn what_is_chosen_twice_is_chosen_once() {
        assert_eq!(settings(&["tracker=b,a,b"]).unwrap().choices("tracker"), ["b", "a"]);
        assert_eq!(settings(&["tracker=a,b,a"]).unwrap().arguments(), "");
    }

    #[test]
    fn a_wrong_value_is_named_with_what_was_expected() {
        for (set, expected) in [
            ("rounds=0", "parameter rounds is \"0\": expected a whole number from 1 to 10"),
            ("rounds=two", "parameter rounds is \"two\": expected a whole number from 1 to 10"),
            (
                "memory=4X",
                "parameter memory is \"4X\": expected a size from 1M to 1T, such as 512M or 4G",
            ),
            ("memory=99999999999T", "parameter memory is \"99999999999T\": expected a size"),
            ("tracker=", "parameter tracker is \"\": expected one or several of a, b"),
            ("tracker=a,c", "parameter tracker is \"a,c\": expected one or several of a, b"),
            ("delay=NaN", "parameter delay is \"NaN\": expected a number from 0.1 to 60"),
            ("rounds", "--set \"rounds\": expected NAME=VALUE"),
        ] {
            let said = settings(&[set]).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{said}");
        }
    }
}
