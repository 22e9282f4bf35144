// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Good ranges in chains that are not.

use super::{Arena, Descriptor, Expectation, GpaRange, HostileCase, Result, Return, arena::report};

pub(super) const CASES: &[HostileCase] = &[
    HostileCase::new("device_readable", device_readable),
    HostileCase::new("loop_of_one", loop_of_one),
    HostileCase::new("loop_of_two", loop_of_two),
    HostileCase::new("loop_of_the_whole_ring", loop_of_the_whole_ring),
    HostileCase::new("next_behind_the_table", next_behind_the_table),
    HostileCase::new("next_far_behind_the_table", next_far_behind_the_table),
    HostileCase::new("two_chains_with_one_tail", two_chains_with_one_tail),
    HostileCase::new("ring_full_of_bad_chains", ring_full_of_bad_chains),
    HostileCase::new("head_behind_the_table", head_behind_the_table),
    HostileCase::new("available_index_runs_ahead", available_index_runs_ahead),
];

/// Reports are device-writable; what the device may only read is not one.
fn device_readable(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let (good, bad) = (arena.block(0), arena.block(1));
    let readable = Descriptor::readable(bad.start(), u32::try_from(bad.len())?);
    arena.offer(&[readable, report(good)?, readable])?;
    Ok(Some(Expectation::loses(vec![good])))
}

/// Offers `ranges` as a chain whose last descriptor goes on at `next`.
fn broken_chain(
    arena: &mut Arena<'_>,
    ranges: Vec<GpaRange>,
    next: impl FnOnce(&Arena<'_>, &[u16]) -> u16,
) -> Result<Option<Expectation>> {
    let descriptors: Result<Vec<_>> = ranges.iter().map(|range| report(*range)).collect();
    let descriptors = descriptors?;
    let claimed = arena.offer(&descriptors)?;
    let (last, next) = (claimed.len() - 1, next(arena, &claimed));
    arena.ring.write_descriptor(claimed[last], descriptors[last].chained_to(next))?;
    Ok(Some(Expectation::may_lose(ranges)))
}

fn loop_of_one(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0)];
    broken_chain(arena, ranges, |_, claimed| claimed[0])
}

fn loop_of_two(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = (0..4).map(|index| arena.block(index)).collect();
    broken_chain(arena, ranges, |_, claimed| claimed[2])
}

fn loop_of_the_whole_ring(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let count = u64::from(arena.ring.free_descriptors());
    let ranges = (0..count).map(|index| arena.block(index)).collect();
    broken_chain(arena, ranges, |_, claimed| claimed[0])
}

fn next_behind_the_table(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    broken_chain(arena, ranges, |arena, _| arena.ring.layout().size())
}

fn next_far_behind_the_table(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0)];
    broken_chain(arena, ranges, |_, _| u16::MAX)
}

/// No descriptor is out of place in either chain, so all ranges are reported.
fn two_chains_with_one_tail(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1), arena.block(2)];
    let tail = arena.offer(&[report(ranges[0])?, report(ranges[1])?])?[0];
    let descriptor = report(ranges[2])?;
    let head = arena.offer(&[descriptor])?[0];
    arena.ring.write_descriptor(head, descriptor.chained_to(tail))?;
    Ok(Some(Expectation { returns: Return::Chains(2), ..Expectation::loses(ranges) }))
}

fn ring_full_of_bad_chains(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let count = arena.ring.free_descriptors();
    let end = arena.end_of_ram()?;
    for _ in 0..count {
        arena.offer(&[Descriptor::writable(end, u32::MAX)])?;
    }
    let returns = Return::Chains(usize::from(count));
    Ok(Some(Expectation { returns, ..Expectation::loses_nothing() }))
}

fn head_behind_the_table(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    for head in [arena.ring.layout().size(), u16::MAX] {
        arena.ring.offer(head)?;
    }
    arena.ring.publish()?;
    Ok(Some(Expectation { returns: Return::RingRefused, ..Expectation::loses_nothing() }))
}

/// More chains than the ring holds: the index is made up, as nothing of it is there.
fn available_index_runs_ahead(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ahead = arena.ring.layout().size() + 1;
    arena.ring.store_avail_idx(arena.ring.published().wrapping_add(ahead))?;
    Ok(Some(Expectation { returns: Return::RingRefused, ..Expectation::loses_nothing() }))
}
