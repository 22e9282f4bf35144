// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An observation, and the verdict on several.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::store::{Verdict, VerdictKind};

/// A verdict with the observation behind it, in a sentence.
pub(super) type Seen = (VerdictKind, String);

/// An observation that shows a hypothesis, or does not.
pub(super) fn seen(shown: bool, text: String) -> Seen {
    (if shown { VerdictKind::Shown } else { VerdictKind::NotShown }, text)
}

/// Runs something that panics if an assertion of the model fails.
pub(super) fn assertion<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| "an assertion of the model failed".to_owned())
}

/// The verdict on all observations: the strongest one's.
pub(super) fn verdict(all: Vec<Seen>) -> Option<Verdict> {
    let strength = |kind: VerdictKind| match kind {
        VerdictKind::NotTestable => 0,
        VerdictKind::NotShown => 1,
        VerdictKind::Survived => 2,
        VerdictKind::AsDocumented => 3,
        VerdictKind::Shown => 4,
        VerdictKind::Lost => 5,
    };
    let kind = all.iter().map(|(kind, _)| *kind).max_by_key(|kind| strength(*kind))?;
    let text = all.iter().map(|(of, text)| match of {
        of if *of == kind => text.clone(),
        VerdictKind::NotShown => format!("not shown: {text}"),
        VerdictKind::NotTestable => format!("not tested: {text}"),
        _ => text.clone(),
    });
    Some(Verdict { kind, text: text.collect::<Vec<_>>().join("; ") })
}
