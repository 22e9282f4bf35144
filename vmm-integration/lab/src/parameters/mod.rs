// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Parameters of experiments: each experiment declares a struct of its own with `parameters!`.
//!
//! | file | content |
//! |---|---|
//! | [`takes`] | the values that a parameter takes |
//!
//! Values are checked before anything runs. An error names the parameter, the given value and the
//! expected ones.

pub mod takes;

use std::collections::BTreeMap;

use takes::Takes;

/// A parameter, for a list.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Parameter {
    /// Its name in `--set NAME=VALUE`.
    pub name: String,
    /// Its meaning.
    pub what: &'static str,
    /// The values that it takes, in words.
    pub takes: String,
    /// Its value in a quick run.
    pub quick: String,
    /// Its value in a full run.
    pub full: String,
}

impl Parameter {
    /// The parameter of a field.
    pub fn of<V>(
        field: &str,
        what: &'static str,
        takes: &impl Takes<Value = V>,
        quick: &V,
        full: &V,
    ) -> Self {
        let (quick, full) = (takes.show(quick), takes.show(full));
        Self { name: parameter_name(field), what, takes: takes.to_string(), quick, full }
    }
}

/// The name of a field's parameter: `round_trip` is `round-trip`.
pub fn parameter_name(field: &str) -> String {
    field.replace('_', "-")
}

/// All parameters of an experiment with their values. `parameters!` implements it.
pub trait Parameters: Sized {
    /// The parameters, in the order of their declaration.
    fn declared() -> Vec<Parameter>;

    /// Reads the values for a run of this length. Ignores assignments to other names.
    ///
    /// # Errors
    /// [`PlanError::Value`].
    fn read(length: Length, assigned: &Assignments) -> Result<Self, PlanError>;

    /// The values as texts, in the order of their declaration.
    fn texts(&self) -> Vec<String>;

    /// The values by name, for the record.
    fn by_name(&self) -> BTreeMap<String, String> {
        Self::declared().into_iter().map(|parameter| parameter.name).zip(self.texts()).collect()
    }

    /// The arguments that turn the values of a run of this length into these.
    fn arguments(&self, length: Length) -> String {
        let changed = Self::declared().into_iter().zip(self.texts()).filter(|(parameter, text)| {
            text != match length {
                Length::Quick => &parameter.quick,
                Length::Full => &parameter.full,
            }
        });
        changed.map(|(parameter, text)| format!(" --set {}={text}", parameter.name)).collect()
    }
}

/// An experiment without parameters.
impl Parameters for () {
    fn declared() -> Vec<Parameter> {
        Vec::new()
    }

    fn read(_: Length, _: &Assignments) -> Result<Self, PlanError> {
        Ok(())
    }

    fn texts(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Declares a struct of parameters: each field with its type, the values that it takes, its value in a
/// quick and in a full run, and its meaning.
macro_rules! parameters {
    ($(#[$doc:meta])* $vis:vis struct $Name:ident {
        $($field:ident: $Type:ty, $takes:expr, $quick:expr, $full:expr, $what:literal;)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $Name {
            $(#[doc = $what] $vis $field: $Type,)+
        }

        impl $crate::parameters::Parameters for $Name {
            fn declared() -> Vec<$crate::parameters::Parameter> {
                vec![$($crate::parameters::Parameter::of::<$Type>(
                    stringify!($field), $what, &$takes, &$quick, &$full
                ),)+]
            }

            fn read(
                length: $crate::parameters::Length,
                assigned: &$crate::parameters::Assignments,
            ) -> Result<Self, $crate::parameters::PlanError> {
                Ok(Self {
                    $($field: assigned.value::<$Type>(
                        stringify!($field), &$takes, length.pick($quick, $full)
                    )?,)+
                })
            }

            fn texts(&self) -> Vec<String> {
                vec![$($crate::parameters::shown::<$Type>(&$takes, &self.$field),)+]
            }
        }
    };
}
pub(crate) use parameters;

/// Writes a value as its parameter reads it.
pub fn shown<V>(takes: &impl Takes<Value = V>, value: &V) -> String {
    takes.show(value)
}

/// The length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Seconds a case, for a look and for CI.
    Quick,
    /// Minutes a case, for figures to quote.
    Full,
}

impl Length {
    /// The value for this length.
    pub fn pick<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// A request that no run can begin with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An unknown experiment.
    #[error("unknown experiment {name:?}: expected one of {known}")]
    Experiment {
        /// The given text.
        name: String,
        /// The known names.
        known: String,
    },
    /// An unknown case.
    #[error("unknown case {name:?} of {experiment} with these parameters: expected one of {known}")]
    Case {
        /// The experiment.
        experiment: String,
        /// The given text.
        name: String,
        /// The known names.
        known: String,
    },
    /// A `--set` that is not an assignment.
    #[error("invalid --set {text:?}: expected NAME=VALUE")]
    Form {
        /// The given text.
        text: String,
    },
    /// A parameter that none of the chosen experiments has.
    #[error("unknown parameter {name:?} of {experiments}: expected one of {known}")]
    Name {
        /// The given text.
        name: String,
        /// The chosen experiments.
        experiments: String,
        /// The known names.
        known: String,
    },
    /// A value that the parameter does not take.
    #[error("invalid value of parameter {name} (got {value:?}, expected {expected})")]
    Value {
        /// The parameter.
        name: String,
        /// The given text.
        value: String,
        /// The values that it takes.
        expected: String,
    },
}

/// Values assigned to parameters by name; the last one of a name counts.
#[derive(Clone, Debug, Default)]
pub struct Assignments(Vec<(String, String)>);

impl Assignments {
    /// Reads texts of the form `NAME=VALUE`.
    ///
    /// # Errors
    /// [`PlanError::Form`].
    pub fn parse(texts: &[String]) -> Result<Self, PlanError> {
        let assignment = |text: &String| match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            _ => Err(PlanError::Form { text: text.clone() }),
        };
        texts.iter().map(assignment).collect::<Result<_, _>>().map(Self)
    }

    /// The assigned names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The value assigned to the parameter of a field, or else `default`.
    ///
    /// # Errors
    /// [`PlanError::Value`].
    pub fn value<V>(
        &self,
        field: &str,
        takes: &impl Takes<Value = V>,
        default: V,
    ) -> Result<V, PlanError> {
        let name = parameter_name(field);
        match self.0.iter().rev().find(|(assigned, _)| *assigned == name) {
            None => Ok(default),
            Some((_, text)) => takes.parse(text).ok_or_else(|| PlanError::Value {
                name,
                value: text.clone(),
                expected: takes.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::takes::{Bytes, Real, Several, Sizes, Whole};
    use super::*;

    #[derive(Clone, Debug, PartialEq, strum::Display, strum::EnumString, strum::VariantNames)]
    #[strum(serialize_all = "kebab-case")]
    enum Tracker {
        A,
        B,
    }

    parameters! {
        struct Some {
            rounds: u32, Whole(1, 10), 2, 8, "repetitions";
            memory: u64, Bytes(1 << 20, 1 << 40), 1 << 30, 32 << 30, "memory of the guest";
            tracker: Vec<Tracker>, Several::any(), vec![Tracker::A, Tracker::B], vec![Tracker::A], "trackers";
            pass_delay: f64, Real(0.1, 60.0), 2.0, 2.0, "seconds until a pass";
            sizes: Vec<u64>, Sizes(1 << 20, 1 << 30), vec![1 << 20], vec![1 << 20, 1 << 30], "sizes";
        }
    }

    fn some(set: &[&str]) -> Result<Some, PlanError> {
        let set: Vec<String> = set.iter().map(|&text| text.to_owned()).collect();
        Some::read(Length::Quick, &Assignments::parse(&set)?)
    }

    #[test]
    fn unset_parameter_has_the_value_of_its_length() {
        let quick = some(&["tracker=b"]).unwrap();
        assert_eq!((quick.rounds, quick.memory, &quick.sizes), (2, 1 << 30, &vec![1 << 20]));
        assert_eq!(quick.tracker, [Tracker::B]);
        assert!((quick.pass_delay - 2.0).abs() < f64::EPSILON);
        assert_eq!(quick.arguments(Length::Quick), " --set tracker=b");
        assert_eq!(quick.by_name()["pass-delay"], "2");
        let full = Some::read(Length::Full, &Assignments::default()).unwrap();
        assert_eq!((full.rounds, full.memory), (8, 32 << 30));
        assert_eq!(full.arguments(Length::Full), "");
    }

    #[test]
    fn arguments_of_a_run_give_the_same_values() {
        let first = some(&["memory=3145728", "pass-delay=0.5", "rounds=3", "rounds=4"]).unwrap();
        let arguments = first.arguments(Length::Quick);
        assert_eq!(arguments, " --set rounds=4 --set memory=3M --set pass-delay=0.5");
        let again: Vec<&str> = arguments.split(" --set ").skip(1).collect();
        assert_eq!(some(&again).unwrap(), first);
    }

    #[test]
    fn repeated_choice_counts_once() {
        assert_eq!(some(&["tracker=b,a,b"]).unwrap().tracker, [Tracker::B, Tracker::A]);
        assert_eq!(some(&["tracker=a,b,a"]).unwrap().arguments(Length::Quick), "");
    }

    #[test]
    fn wrong_value_is_named_with_the_expected_ones() {
        for (set, expected) in [
            ("rounds=0", "rounds (got \"0\", expected a whole number from 1 to 10)"),
            ("rounds=two", "rounds (got \"two\", expected a whole number from 1 to 10)"),
            ("memory=4X", "memory (got \"4X\", expected a size from 1M to 1T, such as 512M or 4G)"),
            ("memory=99999999999T", "memory (got \"99999999999T\", expected a size"),
            ("tracker=", "tracker (got \"\", expected one or several of a, b)"),
            ("tracker=a,c", "tracker (got \"a,c\", expected one or several of a, b)"),
            ("pass-delay=NaN", "pass-delay (got \"NaN\", expected a number from 0.1 to 60)"),
            ("rounds", "invalid --set \"rounds\": expected NAME=VALUE"),
        ] {
            let said = some(&[set]).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}
