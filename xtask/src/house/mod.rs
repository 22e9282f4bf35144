// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rules of the house that no other tool checks, as tests over the workspace's files.

mod builds;
mod circles;
mod corpora;
mod links;
mod modules;
mod sources;
mod supply;

use anyhow::Result;

use crate::files::with_extension;

#[test]
fn xtask_is_built_of_what_the_tests_are() -> Result<()> {
    builds::check()
}

#[test]
fn imports_form_no_circle() -> Result<()> {
    circles::check(&with_extension("rs")?)
}

#[test]
fn sources_are_short_and_licensed() -> Result<()> {
    sources::check(&with_extension("rs")?)
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    links::check(&with_extension("md")?)
}

#[test]
fn corpora_of_fuzz_targets_are_small() -> Result<()> {
    corpora::check()
}

#[test]
fn packages_come_from_crates_io() -> Result<()> {
    supply::check_sources()
}

#[test]
fn what_is_linked_is_on_the_lists() -> Result<()> {
    supply::check_linked()
}
