// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways to report that are compared.

use std::fmt;

use guest_driver::reporting::{Config, Holding, TrackerKind};

/// A tracker with a way to hold pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// How the guest remembers which blocks to report.
    pub(crate) tracker: TrackerKind,
    /// How it holds reported pages.
    pub(crate) holding: Holding,
}

impl Scheme {
    /// Every tracker with every way to hold pages.
    pub(crate) fn of(trackers: &[TrackerKind], holdings: &[Holding]) -> Vec<Self> {
        let with =
            |&tracker: &TrackerKind| holdings.iter().map(move |&holding| Self { tracker, holding });
        trackers.iter().flat_map(with).collect()
    }

    /// The configuration of a reporter.
    pub(crate) fn config(self) -> Config {
        Config { tracker: self.tracker, holding: self.holding, ..Config::DEFAULT }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.tracker, self.holding)
    }
}
