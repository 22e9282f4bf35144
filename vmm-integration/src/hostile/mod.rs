// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptor chains that no sane driver writes, and the guest memory that a device may discard for
//! each.
//!
//! Each case writes its chains through the raw side of [`DriverRing`] and names two sets of bytes.
//! The device must discard the first. It may discard or keep the second, because the chain is
//! malformed behind them or the specification forbids their form. Every other byte must stay.
//! Ranges count after merging, and after rounding inward to whole pages of their backing.
//!
//! | file | idea |
//! |---|---|
//! | `chains` | loops, lengths and flags of chains |
//! | `tables` | indirect tables |
//! | `addresses` | ranges outside, across and at the edges of regions |
//! | `arena` | guest memory filled with the pattern, and the check afterwards |
//!
//! Ranges that cover the ring itself are left out: they damage only the guest's own ring, and leave
//! nothing to check.

use crate::{
    frontend::Attachment,
    guest_memory::{PageState, Ram},
};
use anyhow::{Context, Result, bail, ensure};
use guest_driver::{
    pattern::PAGE_BYTES,
    ram::{Gpa, GpaRange},
    virtio::{
        feature,
        layout::Descriptor,
        ring::{Buffer, DriverRing},
    },
};
use std::time::Duration;

mod addresses;
mod arena;
mod chains;
mod tables;

pub use arena::Arena;

/// The chains that a device must return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// This many come back, each with length 0.
    Chains(usize),
    /// The available ring itself is wrong, so there is nothing to come back. The device may refuse
    /// the ring until it is started again, and has to live on. The case publishes it itself.
    RingRefused,
}

/// The effects of a case that a device may have.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Well-formed reports: gone once the chains are back.
    pub must_lose: Vec<GpaRange>,
    /// Reports that a device may honour or skip.
    pub may_lose: Vec<GpaRange>,
    /// What comes back.
    pub returns: Return,
}

impl Expectation {
    /// One chain that reports `must_lose` and nothing doubtful.
    pub fn loses(must_lose: Vec<GpaRange>) -> Self {
        Self { must_lose, may_lose: Vec::new(), returns: Return::Chains(1) }
    }

    /// One chain of which `may_lose` may count.
    pub fn may_lose(may_lose: Vec<GpaRange>) -> Self {
        Self { must_lose: Vec::new(), may_lose, returns: Return::Chains(1) }
    }

    /// One chain that reports nothing.
    pub fn loses_nothing() -> Self {
        Self::loses(Vec::new())
    }
}

/// Writes a case; `None` where the RAM lacks the shape that it needs.
type Write = fn(&mut Arena<'_>) -> Result<Option<Expectation>>;

/// A named case.
#[derive(Clone, Copy, Debug)]
pub struct HostileCase {
    /// Its name, in the form of an identifier.
    pub name: &'static str,
    write: Write,
}

impl HostileCase {
    const fn new(name: &'static str, write: Write) -> Self {
        Self { name, write }
    }

    /// Writes the case's chains and offers them; publishing is left, but for
    /// [`Return::RingRefused`]. `None` where the RAM lacks
    /// the shape that the case needs: nothing is offered then.
    ///
    /// # Errors
    /// When the ring has too few free descriptors.
    pub fn write(&self, arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
        (self.write)(arena).with_context(|| format!("cannot write case {}", self.name))
    }
}

/// Every case.
pub fn catalogue() -> impl Iterator<Item = HostileCase> {
    [addresses::CASES, chains::CASES, tables::CASES].into_iter().flatten().copied()
}

/// Lets the driver of `attachment` play `case` on `queue`, and holds the backend against it: every
/// chain back with length 0, a sane report behind it served, nothing lost that was not reported.
/// All RAM but [`Attachment::reserved`] is overwritten with the pattern of `generation` first.
///
/// Says whether the case was played: `false` where the RAM lacks the shape it needs.
///
/// # Errors
/// What the backend did wrong.
pub fn play(
    case: HostileCase,
    attachment: &mut Attachment,
    queue: u16,
    generation: u16,
    timeout: Duration,
) -> Result<bool> {
    let (ram, reserved) = (attachment.ram().clone(), attachment.reserved());
    let scratch = attachment.scratch();
    let indirect = attachment.features() & feature::INDIRECT_DESC != 0;
    for range in outside(&ram, reserved) {
        ram.write_pattern(range, generation)?;
    }
    let mut arena = Arena::new(&ram, attachment.ring(queue)?, scratch, reserved, indirect)?;
    let sentinel = arena.sentinel();
    let Some(mut expected) = case.write(&mut arena)? else {
        return Ok(false);
    };
    if expected.returns != Return::RingRefused {
        attachment.publish(queue)?;
    }
    let verdict = (|| {
        match expected.returns {
            Return::Chains(count) => wait_for_chains(attachment, queue, count, timeout)?,
            Return::RingRefused => {
                attachment.kick(queue)?;
                attachment.stop_queue(queue)?;
                attachment.reset_ring(queue)?;
                attachment.start_queue(queue, 0)?;
            }
        }
        let report = Buffer::writable(sentinel.start(), u32::try_from(sentinel.len())?);
        let used = attachment.submit_and_wait(queue, &[report]).context("a sane report after")?;
        ensure!(used.len == 0, "a sane report came back with length {}", used.len);
        expected.must_lose.push(sentinel);
        check(&ram, generation, &expected, reserved)
    })();
    verdict.with_context(|| format!("case {}", case.name))?;
    Ok(true)
}

fn wait_for_chains(
    attachment: &mut Attachment,
    queue: u16,
    count: usize,
    timeout: Duration,
) -> Result<()> {
    for turn in 0..count {
        let used = attachment.wait_used(queue, timeout)?;
        let used =
            used.with_context(|| format!("{turn} of {count} chains came back within {timeout:?}"))?;
        ensure!(used.len == 0, "chain {} came back with length {}", used.id, used.len);
    }
    Ok(())
}

/// Holds all RAM but `reserved` against an expectation. It held the pattern of `generation` when
/// the case was written.
///
/// # Errors
/// The first page that is not as it has to be.
pub fn check(ram: &Ram, generation: u16, expected: &Expectation, reserved: GpaRange) -> Result<()> {
    let must = discarded(ram, expected.must_lose.clone());
    let may = discarded(ram, [&expected.must_lose[..], &expected.may_lose[..]].concat());
    for range in outside(ram, reserved) {
        ram.for_each_page(range, generation, |at, state| match state {
            PageState::Broken(mismatch) => Err(mismatch.into()),
            PageState::Zero if !holds(&may, at) => bail!("{at} was lost and never reported"),
            PageState::Intact if holds(&must, at) => bail!("{at} was reported and is still there"),
            PageState::Zero | PageState::Intact => Ok(()),
        })?;
    }
    Ok(())
}

/// The bytes that discarding `ranges` frees: merged, then whole pages region by region.
fn discarded(ram: &Ram, mut ranges: Vec<GpaRange>) -> Vec<GpaRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut merged: Vec<GpaRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            // Without an end it reaches the top of the address space: all others lie in it.
            Some(last) if last.end().is_none_or(|end| end >= range.start()) => {
                let end = last.end().max(range.end());
                *last = GpaRange::between(last.start(), end.unwrap_or(Gpa(u64::MAX)));
            }
            _ => merged.push(range),
        }
    }
    merged.into_iter().flat_map(|range| ram.whole_pages(range)).collect()
}

/// Whether the page at `at` lies in one of `ranges`, which are sorted and apart.
fn holds(ranges: &[GpaRange], at: Gpa) -> bool {
    let before = ranges.partition_point(|range| range.start() <= at);
    let page = GpaRange::new(at, PAGE_BYTES as u64).unwrap_or_default();
    before.checked_sub(1).is_some_and(|index| ranges[index].contains(page))
}

/// All RAM but `reserved`.
fn outside(ram: &Ram, reserved: GpaRange) -> Vec<GpaRange> {
    let parts = ram.regions().iter().flat_map(|region| {
        let (range, end) = (region.range, region.range.end().unwrap_or(Gpa(u64::MAX)));
        match range.intersection(reserved) {
            None => vec![range],
            Some(taken) => {
                let behind = taken.end().unwrap_or(end);
                vec![
                    GpaRange::between(range.start(), taken.start()),
                    GpaRange::between(behind, end),
                ]
            }
        }
    });
    parts.filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests;
