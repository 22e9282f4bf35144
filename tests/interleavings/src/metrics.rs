// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reasons that `inhibit` knows.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SkipReason {
    Paused,
    Migrating,
    Postcopy,
}
