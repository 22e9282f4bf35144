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

impl Scheme {
    /// The schemes of these trackers and ways to hold pages, by their names.
    pub(crate) fn of(trackers: &[&str], holdings: &[&str]) -> Vec<Self> {
        let of_tracker = |tracker: &&str| {
            holdings
                .iter()
                .filter_map(|holding| Self::named(&format!("{tracker}-{holding}")))
                .collect::<Vec<_>>()
        };
        trackers.iter().flat_map(of_tracker).collect()
    }

    /// The scheme that a case's name begins with, such as `section-bit-isolate-uniform`.
    pub(crate) fn named(case: &str) -> Option<Self> {
        let all = TrackerKind::ALL.iter().flat_map(|&tracker| {
            Holding::ALL.iter().map(move |&holding| Self { tracker, holding })
        });
        all.into_iter().find(|scheme| {
            let rest = case.strip_prefix(&scheme.name());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    }

    /// What its cases' names begin with.
    pub(crate) fn name(self) -> String {
        format!("{}-{}", self.tracker, self.holding)
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
        let all = Scheme::of(TrackerKind::NAMES, Holding::NAMES);
        assert_eq!(all.len(), 10);
        for scheme in all {
            assert_eq!(Scheme::named(&format!("{}-uniform", scheme.name())), Some(scheme));
        }
        assert_eq!(Scheme::named("no-tracker-isolate"), None);
        assert_eq!(Scheme::named("section-bit"), None);
    }
}
