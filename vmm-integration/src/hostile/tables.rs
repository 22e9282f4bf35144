// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Indirect tables (virtio 1.2, 2.7.5.3).
//!
//! Where the driver may not use them, a device may refuse even the good ones.

use super::{Arena, Descriptor, Expectation, Gpa, GpaRange, HostileCase, Result, arena::report};

pub(super) const CASES: &[HostileCase] = &[
    HostileCase::new("table_beyond_ram", table_beyond_ram),
    HostileCase::new("table_wrapping", table_wrapping),
    HostileCase::new("table_in_a_hole", table_in_a_hole),
    HostileCase::new("table_partly_beyond_ram", table_partly_beyond_ram),
    HostileCase::new("table_of_length_zero", table_of_length_zero),
    HostileCase::new("table_of_ragged_length", table_of_ragged_length),
    HostileCase::new("table_of_huge_length", table_of_huge_length),
    HostileCase::new("table_with_a_loop", table_with_a_loop),
    HostileCase::new("table_with_next_behind_it", table_with_next_behind_it),
    HostileCase::new("table_in_a_table", table_in_a_table),
    HostileCase::new("table_that_holds_itself", table_that_holds_itself),
    HostileCase::new("table_and_next", table_and_next),
    HostileCase::new("table_device_writable", table_device_writable),
    HostileCase::new("table_behind_plain_descriptors", table_behind_plain_descriptors),
    HostileCase::new("table_unaligned", table_unaligned),
];

/// The longest multiple of a descriptor's size that a length holds.
const HUGE: u32 = !15;

/// The bytes of a table of `count` descriptors.
fn bytes(count: usize) -> Result<u32> {
    Ok(u32::try_from(count * Descriptor::BYTES)?)
}

/// One chain in order, whose ranges count where indirect tables were negotiated.
fn in_order(arena: &Arena<'_>, ranges: Vec<GpaRange>) -> Option<Expectation> {
    Some(match arena.indirect {
        true => Expectation::loses(ranges),
        false => Expectation::may_lose(ranges),
    })
}

fn table_beyond_ram(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let end = arena.end_of_ram()?;
    arena.offer(&[Descriptor::indirect(end, bytes(32)?)])?;
    Ok(Some(Expectation::loses_nothing()))
}

fn table_wrapping(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    arena.offer(&[Descriptor::indirect(Gpa(16_u64.wrapping_neg()), bytes(32)?)])?;
    Ok(Some(Expectation::loses_nothing()))
}

fn table_in_a_hole(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let Some((hole, ..)) = arena.hole() else { return Ok(None) };
    arena.offer(&[Descriptor::indirect(hole.start(), bytes(4)?)])?;
    Ok(Some(Expectation::loses_nothing()))
}

/// The table's start is what the last page of RAM holds; nothing in there is a report of ours.
fn table_partly_beyond_ram(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    // The pattern read as a descriptor: its address is beyond any RAM, its flags are 0.
    let start = Gpa(arena.end_of_ram()?.0 - 16);
    arena.offer(&[Descriptor::indirect(start, bytes(8)?)])?;
    Ok(Some(Expectation::loses_nothing()))
}

/// Offers a table of one good range with `len` as its length.
fn table_of_length(arena: &mut Arena<'_>, len: u32) -> Result<GpaRange> {
    let range = arena.block(0);
    arena.write_table(arena.table(0), &[report(range)?])?;
    arena.offer(&[Descriptor::indirect(arena.table(0), len)])?;
    Ok(range)
}

fn table_of_length_zero(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    table_of_length(arena, 0)?;
    Ok(Some(Expectation::loses_nothing()))
}

fn table_of_ragged_length(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let range = table_of_length(arena, 16 + 9)?;
    Ok(Some(Expectation::may_lose(vec![range])))
}

/// More entries than an index can name. The first one ends the chain.
fn table_of_huge_length(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let range = table_of_length(arena, HUGE)?;
    Ok(Some(Expectation::may_lose(vec![range])))
}

/// As long as a table can be, so that its length does not end the loop soon.
fn table_with_a_loop(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    let entries = [report(ranges[0])?.chained_to(1), report(ranges[1])?.chained_to(0)];
    arena.write_table(arena.table(0), &entries)?;
    arena.offer(&[Descriptor::indirect(arena.table(0), bytes(usize::from(u16::MAX))?)])?;
    Ok(Some(Expectation::may_lose(ranges)))
}

fn table_with_next_behind_it(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    let entries = [report(ranges[0])?.chained_to(1), report(ranges[1])?.chained_to(2)];
    arena.write_table(arena.table(0), &entries)?;
    arena.offer(&[Descriptor::indirect(arena.table(0), bytes(2)?)])?;
    Ok(Some(Expectation::may_lose(ranges)))
}

fn table_in_a_table(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1), arena.block(2)];
    arena.write_table(arena.table(1), &[report(ranges[1])?])?;
    let nested = Descriptor::indirect(arena.table(1), bytes(1)?);
    let entries = [report(ranges[0])?, nested, report(ranges[2])?];
    arena.write_chained_table(arena.table(0), &entries)?;
    arena.offer(&[Descriptor::indirect(arena.table(0), bytes(3)?)])?;
    Ok(Some(Expectation::may_lose(ranges)))
}

fn table_that_holds_itself(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let itself = Descriptor::indirect(arena.table(0), bytes(1)?);
    arena.write_table(arena.table(0), &[itself])?;
    arena.offer(&[itself])?;
    Ok(Some(Expectation::loses_nothing()))
}

/// "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags."
fn table_and_next(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    arena.write_table(arena.table(0), &[report(ranges[0])?])?;
    arena.offer(&[Descriptor::indirect(arena.table(0), bytes(1)?), report(ranges[1])?])?;
    Ok(Some(Expectation::may_lose(ranges)))
}

/// "The device MUST ignore the write-only flag in the descriptor that refers to an indirect
/// table."
fn table_device_writable(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    let entries = [report(ranges[0])?, report(ranges[1])?];
    arena.write_chained_table(arena.table(0), &entries)?;
    let mut table = Descriptor::indirect(arena.table(0), bytes(2)?);
    table.flags |= Descriptor::WRITE;
    arena.offer(&[table])?;
    Ok(in_order(arena, ranges))
}

/// "The device MUST handle the case of zero or more normal chained descriptors followed by a
/// single descriptor with flags&VIRTQ_DESC_F_INDIRECT."
fn table_behind_plain_descriptors(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1), arena.block(2)];
    arena.write_table(arena.table(0), &[report(ranges[2])?])?;
    let table = Descriptor::indirect(arena.table(0), bytes(1)?);
    arena.offer(&[report(ranges[0])?, report(ranges[1])?, table])?;
    Ok(in_order(arena, ranges))
}

/// A table has no alignment to keep.
fn table_unaligned(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let ranges = vec![arena.block(0), arena.block(1)];
    let table = Gpa(arena.table(0).0 + 3);
    arena.write_chained_table(table, &[report(ranges[0])?, report(ranges[1])?])?;
    arena.offer(&[Descriptor::indirect(table, bytes(2)?)])?;
    Ok(in_order(arena, ranges))
}
