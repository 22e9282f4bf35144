// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains in order whose ranges are not.

use super::{
    Arena, Descriptor, Expectation, Gpa, GpaRange, HostileCase, Result, Return, arena::report,
};

pub(super) const CASES: &[HostileCase] = &[
    HostileCase::new("beyond_ram", beyond_ram),
    HostileCase::new("partly_beyond_ram", partly_beyond_ram),
    HostileCase::new("in_a_hole", in_a_hole),
    HostileCase::new("wrapping", wrapping),
    HostileCase::new("zero_length", zero_length),
    HostileCase::new("across_regions", across_regions),
    HostileCase::new("across_a_hole", across_a_hole),
    HostileCase::new("unaligned", unaligned),
    HostileCase::new("below_a_page", below_a_page),
    HostileCase::new("half_pages_that_meet", half_pages_that_meet),
    HostileCase::new("overlapping_duplicates", overlapping_duplicates),
    HostileCase::new("longest_lengths", longest_lengths),
    HostileCase::new("good_and_bad_mixed", good_and_bad_mixed),
];

fn beyond_ram(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let end = arena.end_of_ram()?;
    let len = 1 << 20;
    arena.offer(&[
        Descriptor::writable(end, len),
        Descriptor::writable(Gpa(1 << 51), len),
        Descriptor::writable(Gpa(1 << 63), len),
    ])?;
    Ok(Some(Expectation::loses_nothing()))
}

fn partly_beyond_ram(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let end = arena.end_of_ram()?;
    let range = GpaRange::between(Gpa(end.0 - arena.page), Gpa(end.0 + arena.page));
    arena.offer(&[report(range)?])?;
    Ok(Some(Expectation::may_lose(vec![range])))
}

fn in_a_hole(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let Some((hole, ..)) = arena.hole() else { return Ok(None) };
    let len = u32::try_from(hole.len().min(1 << 20))?;
    arena.offer(&[Descriptor::writable(hole.start(), len)])?;
    Ok(Some(Expectation::loses_nothing()))
}

fn wrapping(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let page = arena.page;
    let len = u32::try_from(page)?;
    arena.offer(&[
        // Into address 0, exactly to 2^64, from its last byte, and by the longest length.
        Descriptor::writable(Gpa(page.wrapping_neg()), len * 2),
        Descriptor::writable(Gpa(page.wrapping_neg()), len),
        Descriptor::writable(Gpa(u64::MAX), len),
        Descriptor::writable(Gpa(u64::from(u32::MAX).wrapping_neg() + 1), u32::MAX),
    ])?;
    Ok(Some(Expectation::loses_nothing()))
}

fn zero_length(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let good = arena.block(0);
    arena.offer(&[
        Descriptor::writable(arena.block(1).start(), 0),
        Descriptor::writable(arena.end_of_ram()?, 0),
        report(good)?,
        Descriptor::writable(Gpa(u64::MAX), 0),
        Descriptor::readable(arena.block(2).start(), 0),
    ])?;
    Ok(Some(Expectation::loses(vec![good])))
}

fn across_regions(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let Some((seam, page)) = arena.seam() else { return Ok(None) };
    let range = GpaRange::between(Gpa(seam.0 - page), Gpa(seam.0 + page));
    arena.offer(&[report(range)?])?;
    Ok(Some(Expectation::loses(vec![range])))
}

fn across_a_hole(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let Some((hole, before, behind)) = arena.hole() else { return Ok(None) };
    let Some(end) = hole.end() else { return Ok(None) };
    let range = GpaRange::between(Gpa(hole.start().0 - before), Gpa(end.0 + behind));
    // A hole may be longer than a descriptor reaches.
    let Ok(descriptor) = report(range) else { return Ok(None) };
    arena.offer(&[descriptor])?;
    Ok(Some(Expectation::may_lose(vec![range])))
}

fn unaligned(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let page = arena.page;
    let ranges = vec![
        arena.part(0, 1, 3 * page),
        arena.part(1, 0, 3 * page + 1),
        arena.part(2, page - 1, 2 * page + 2),
        arena.part(3, 100, 4 * page - 200),
    ];
    let descriptors: Result<Vec<_>> = ranges.iter().map(|range| report(*range)).collect();
    arena.offer(&descriptors?)?;
    Ok(Some(Expectation::loses(ranges)))
}

fn below_a_page(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let page = arena.page;
    arena.offer(&[
        report(arena.part(0, 0, page - 1))?,
        report(arena.part(1, 1, page - 1))?,
        report(arena.part(2, page - 1, 2))?,
        report(arena.part(3, 1, 2 * page - 2))?,
        report(arena.part(4, 7, 1))?,
    ])?;
    Ok(Some(Expectation::loses_nothing()))
}

/// Two reports that fill a page only together: merging them ahead of rounding is allowed, as
/// neither has been acknowledged, and not required.
fn half_pages_that_meet(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let half = arena.page / 2;
    let (upper, lower) = (arena.part(0, half, half), arena.part(0, 0, half));
    arena.offer(&[report(upper)?, report(lower)?])?;
    Ok(Some(Expectation::may_lose(vec![lower, upper])))
}

fn overlapping_duplicates(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let page = arena.page;
    let ranges = vec![
        arena.part(0, page, 2 * page),
        arena.part(0, page, 2 * page),
        arena.part(0, 2 * page, 2 * page),
        arena.block(0),
        arena.part(0, page, page),
    ];
    let descriptors: Result<Vec<_>> = ranges.iter().map(|range| report(*range)).collect();
    arena.offer(&descriptors?)?;
    Ok(Some(Expectation::loses(ranges)))
}

/// As many descriptors as there are, each of the longest length: far more than the 2^32 bytes that
/// a chain may hold (virtio 1.2, 2.7.5.2), and beyond RAM but for its last page.
fn longest_lengths(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let start = Gpa(arena.end_of_ram()?.0 - arena.page);
    let count = usize::from(arena.ring.free_descriptors());
    arena.offer(&vec![Descriptor::writable(start, u32::MAX); count])?;
    let range = GpaRange::new(start, u64::from(u32::MAX)).unwrap_or_default();
    Ok(Some(Expectation::may_lose(vec![range])))
}

fn good_and_bad_mixed(arena: &mut Arena<'_>) -> Result<Option<Expectation>> {
    let good: Vec<_> = (0..6).map(|index| arena.block(2 * index)).collect();
    let bad = [
        Descriptor::writable(arena.end_of_ram()?, 4096),
        Descriptor::readable(arena.block(1).start(), u32::try_from(arena.page)?),
        Descriptor::writable(Gpa(u64::MAX - 100), 4096),
        Descriptor::writable(arena.block(3).start(), 0),
        report(arena.part(5, 1, arena.page))?,
    ];
    let mut descriptors = vec![report(good[0])?];
    for (good, bad) in good[1..].iter().zip(bad) {
        descriptors.extend([bad, report(*good)?]);
    }
    arena.offer(&descriptors)?;
    // The same in two more chains, so that one kick brings several.
    let (more, readable) = (arena.block(13), arena.block(14));
    arena.offer(&[Descriptor::readable(readable.start(), 4096)])?;
    arena.offer(&[report(more)?])?;
    let must_lose = [good, vec![more]].concat();
    Ok(Some(Expectation { must_lose, may_lose: Vec::new(), returns: Return::Chains(3) }))
}
