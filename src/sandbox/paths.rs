// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No path: Landlock denies everything that it knows, on files, TCP ports, abstract sockets and signals
//! of others.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Missing, SandboxError};

/// The newest version that the tests have seen. An older kernel denies what it knows.
const NEWEST: ABI = ABI::V6;

/// Denies paths, except to remove a file that is in one of `folders`. Returns what is missing.
pub(super) fn deny(folders: &[BorrowedFd<'_>]) -> Result<Option<Missing>, SandboxError> {
    let RestrictionStatus { ruleset, landlock, .. } =
        restrict(folders).map_err(SandboxError::of("deny paths by Landlock"))?;
    let why = match ruleset {
        RulesetStatus::FullyEnforced => return Ok(None),
        RulesetStatus::PartiallyEnforced => format!("this kernel's is older: {landlock:?}"),
        RulesetStatus::NotEnforced => format!("this kernel has none in force: {landlock:?}"),
    };
    let part = match ruleset {
        RulesetStatus::PartiallyEnforced => "all of Landlock",
        _ => "Landlock",
    };
    Ok(Some(Missing { part, why, refused: false }))
}

fn restrict(folders: &[BorrowedFd<'_>]) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for folder in folders {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    rules.restrict_self()
}
