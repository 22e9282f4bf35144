// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::HashSet;

use super::{Holds, SharedPageTables};
use crate::{Invariant, Kind, Model, cases};
use guest_driver::hugetlb::{Flaw, Scheme};

#[test]
fn good_configurations_hold_with_real_threads() {
    for case in cases::<SharedPageTables>().iter().filter(|case| case.kind == Kind::Good) {
        for seed in 0..5 {
            assert_eq!(case.run(seed), Ok(()), "{}, {seed}", case.name);
        }
    }
}

#[test]
fn every_scheme_and_flaw_has_its_configuration() {
    let all = SharedPageTables::configurations();
    let names: HashSet<_> = all.iter().map(|one| one.name.clone()).collect();
    assert_eq!(names.len(), all.len());
    for scheme in Scheme::ALL {
        let sound = Scheme::SOUND.contains(scheme);
        let good = |kind| kind == Kind::Good;
        assert!(all.iter().any(|one| one.setting.scheme == *scheme && good(one.kind) == sound));
    }
    for flaw in Flaw::ALL {
        let found = all.iter().find(|one| one.setting.flaw == Some(*flaw)).expect("one has it");
        assert_eq!(found.kind, Kind::KnownBad);
    }
}

#[test]
fn documentation_lists_every_scheme_and_invariant() {
    let page = include_str!("../../../../../docs/design/shared-page-tables.md");
    let names = Scheme::ALL.iter().map(<&str>::from);
    for name in names.chain(Holds::ALL.iter().map(|holds| holds.name())) {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}
