// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways to report that are compared, by the names of their cases.

use guest_driver::reporting::{Config, Holding, TrackerKind};

/// A tracker with a way to hold pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// How it is remembered what needs reporting.
    pub(crate) tracker: TrackerKind,
    /// How reported pages are held.
    pub(crate) holding: Holding,
}

/// Letters of the trackers, as in message 002.
pub(crate) const TRACKERS: &[&str] = &["a", "b", "c", "d", "e"];
/// The two ways to hold pages.
pub(crate) const HOLDINGS: &[&str] = &["isolate", "pull"];

impl Scheme {
    /// The schemes of these letters and ways.
    pub(crate) fn of(trackers: &[&str], holdings: &[&str]) -> Vec<Self> {
        let of_tracker = |letter: &&str| {
            holdings
                .iter()
                .filter_map(|holding| Self::named(&format!("{letter}-{holding}")))
                .collect::<Vec<_>>()
        };
        trackers.iter().flat_map(of_tracker).collect()
    }

    /// The scheme that a case's name begins with, such as `d-isolate-uniform`.
    pub(crate) fn named(case: &str) -> Option<Self> {
        let mut parts = case.split('-');
        let letter = parts.next()?;
        let tracker = TRACKERS.iter().zip(TrackerKind::GOOD).find(|(name, _)| **name == letter)?.1;
        let holding = match parts.next()? {
            "isolate" => Holding::Isolate,
            "pull" => Holding::Pull,
            _ => return None,
        };
        Some(Self { tracker, holding })
    }

    /// What its cases' names begin with.
    pub(crate) fn name(self) -> String {
        let holding = match self.holding {
            Holding::Isolate => "isolate",
            Holding::Pull => "pull",
        };
        format!("{}-{holding}", self.tracker.name().to_lowercase())
    }

    /// As a reporter is told.
    pub(crate) fn config(self) -> Config {
        Config { tracker: self.tracker, holding: self.holding, ..Config::DEFAULT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_scheme_are_one_to_one() {
        let all = Scheme::of(TRACKERS, HOLDINGS);
        assert_eq!(all.len(), 10);
        for scheme in all {
            assert_eq!(Scheme::named(&format!("{}-uniform", scheme.name())), Some(scheme));
        }
        assert_eq!(Scheme::named("f-isolate"), None);
        assert_eq!(Scheme::named("d"), None);
    }
}
