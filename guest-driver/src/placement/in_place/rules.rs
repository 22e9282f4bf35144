// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What distinguishes the schemes that update in place, each a type so that none pays for another.

use crate::page_alloc::Look;

/// When the writer changes the sequence count of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// Never: readers see nothing.
    Never,
    /// If the task has a policy, or none of its nodes stays (`need_loop`).
    WhereNeeded,
    /// At each update.
    Always,
}

/// The rules of one scheme.
pub trait Rules: Send + Sync + 'static {
    /// When the sequence count changes.
    const SEQUENCE: Sequence;
    /// New nodes are added before old ones are removed: to the task's nodes.
    const ADDS_FIRST: bool;
    /// And to its policy's (`MPOL_REBIND_STEP1`, `MPOL_REBIND_STEP2`).
    const TWO_STEPS: bool = false;
    /// An allocation reads the sequence count also around all of it, and begins again if it has failed
    /// and the count has changed (`alloc_pages_vma`).
    const OUTER_SCOPE: bool = false;
    /// Looks also whether nodemask and cpuset intersect (`check_retry_cpuset`).
    const INTERSECTS: bool = false;
    /// Policies follow the cpuset also where they are not relative to it.
    const REBINDS: bool = true;
    /// Where the slow path looks.
    const LOOKS: &'static [Look];
}

/// [`super::super::Scheme::InPlace`].
#[derive(Debug)]
pub struct Overwrite;

impl Rules for Overwrite {
    const SEQUENCE: Sequence = Sequence::Never;
    const ADDS_FIRST: bool = false;
    const LOOKS: &'static [Look] = &[];
}

/// [`super::super::Scheme::TwoStep`].
#[derive(Debug)]
pub struct TwoStep;

impl Rules for TwoStep {
    const SEQUENCE: Sequence = Sequence::WhereNeeded;
    const ADDS_FIRST: bool = true;
    const TWO_STEPS: bool = true;
    const OUTER_SCOPE: bool = true;
    const LOOKS: &'static [Look] = &[Look::NoPage];
}

/// [`super::super::Scheme::TwoScopes`].
#[derive(Debug)]
pub struct TwoScopes;

impl Rules for TwoScopes {
    const SEQUENCE: Sequence = Sequence::WhereNeeded;
    const ADDS_FIRST: bool = true;
    const TWO_STEPS: bool = true;
    const OUTER_SCOPE: bool = true;
    const LOOKS: &'static [Look] = &[Look::BeforeOom, Look::NoPage];
}

/// [`super::super::Scheme::IntersectionCheck`].
#[derive(Debug)]
pub struct IntersectionCheck;

impl Rules for IntersectionCheck {
    const SEQUENCE: Sequence = Sequence::Always;
    const ADDS_FIRST: bool = true;
    const INTERSECTS: bool = true;
    const LOOKS: &'static [Look] = &[Look::BeforeOom, Look::NoPage];
}

/// [`super::super::Scheme::CheckAtRetry`].
#[derive(Debug)]
pub struct CheckAtRetry;

impl Rules for CheckAtRetry {
    const SEQUENCE: Sequence = Sequence::Always;
    const ADDS_FIRST: bool = true;
    const INTERSECTS: bool = true;
    const LOOKS: &'static [Look] = &[Look::TopOfRetry, Look::BeforeOom, Look::NoPage];
}

/// [`super::super::Scheme::CheckAfterReclaim`].
#[derive(Debug)]
pub struct CheckAfterReclaim;

impl Rules for CheckAfterReclaim {
    const SEQUENCE: Sequence = Sequence::Always;
    const ADDS_FIRST: bool = true;
    const INTERSECTS: bool = true;
    const LOOKS: &'static [Look] = &[Look::AfterReclaim, Look::BeforeOom, Look::NoPage];
}

/// [`super::super::Scheme::NoRebind`].
#[derive(Debug)]
pub struct NoRebind;

impl Rules for NoRebind {
    const SEQUENCE: Sequence = Sequence::Always;
    const ADDS_FIRST: bool = true;
    const INTERSECTS: bool = true;
    const REBINDS: bool = false;
    const LOOKS: &'static [Look] = &[Look::TopOfRetry, Look::BeforeOom, Look::NoPage];
}
