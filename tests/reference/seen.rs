// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many steps of each kind were taken.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::model::Step;

/// Steps so far, by kind.
static SEEN: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// A step is taken.
pub(crate) fn seen(step: &Step) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    *seen.entry(step.into()).or_default() += 1;
}

pub(crate) fn steps() -> BTreeMap<&'static str, u64> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
