// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What configurations are made of.

use super::super::invariant::Holds;
use super::super::setting::{Scenario, Setting};
use crate::{Configuration, Kind};
use guest_driver::placement::{Flaw, Scheme};

/// A configuration of this model.
pub(in super::super) type Named = Configuration<Setting, Holds>;

/// A scheme in a scenario that it must stand.
pub(super) fn good(scheme: Scheme, scenario: Scenario) -> Named {
    Named {
        name: format!("{scheme}-{}", scenario.name),
        about: scheme.to_string(),
        scenario: scenario.name,
        setting: Setting { scenario, scheme, flaw: None },
        kind: Kind::Good,
        breaks: &[],
        small: false,
    }
}

/// A scheme in a scenario that shows what is wrong with it, or with the mistake that it makes.
pub(super) fn wrong(
    name: &str,
    about: &str,
    (scheme, flaw): (Scheme, Option<Flaw>),
    scenario: Scenario,
    breaks: &'static [Holds],
) -> Named {
    Named {
        name: name.to_owned(),
        about: about.to_owned(),
        scenario: scenario.name,
        setting: Setting { scenario, scheme, flaw },
        kind: Kind::KnownBad,
        breaks,
        small: false,
    }
}

/// A scheme as it was proposed, in a scenario that shows what it does.
pub(super) fn candidate(
    name: &str,
    about: &str,
    scheme: Scheme,
    scenario: Scenario,
    breaks: &'static [Holds],
) -> Named {
    Named { kind: Kind::Candidate, ..wrong(name, about, (scheme, None), scenario, breaks) }
}
