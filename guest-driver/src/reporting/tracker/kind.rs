// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of trackers, and of their mistakes.

/// How a reporter remembers what needs reporting.
///
/// The one list of trackers: names, the lab's choices and the explorer's configurations follow from
/// it. A new one is a variant, a file of its name beside this one, and a row of the table in
/// `docs/design/model.md`.
///
/// ```
/// use guest_driver::reporting::TrackerKind;
///
/// assert_eq!(TrackerKind::SectionBit.name(), "section-bit");
/// assert_eq!("reported-flag".parse(), Ok(TrackerKind::ReportedFlag));
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum TrackerKind {
    /// A bit a granule, over all of the address space that a zone spans.
    ZoneBitmap,
    /// The same bitmap, swapped for an empty one as a whole, with a count of its bits in front.
    ZoneBitmapRcu,
    /// A bitmap a section, and a bit a section that says where to look.
    SectionBitmap,
    /// The same bitmap, and a granule that is marked is reported by itself, not with all of the free
    /// block around it.
    SectionBitmapExact,
    /// One bit a section; all free memory of a marked section is reported.
    SectionBit,
    /// The same bit, and a flag on each free block that was reported, which a pass passes over.
    SectionBitFlag,
    /// A flag on each free block, and the lists rotated past what has it, as in mainline.
    ReportedFlag,
}

impl TrackerKind {
    /// All of them, in the order of their declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;

    /// Its name on command lines and in tables, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether a free block remembers by itself that it was reported.
    pub(in super::super) fn flags_blocks(self) -> bool {
        match self {
            Self::SectionBitFlag | Self::ReportedFlag => true,
            Self::ZoneBitmap
            | Self::ZoneBitmapRcu
            | Self::SectionBitmap
            | Self::SectionBitmapExact
            | Self::SectionBit => false,
        }
    }

    /// Whether a granule is reported with all of the free block that it is in.
    pub(in super::super) fn reports_whole_blocks(self) -> bool {
        self != Self::SectionBitmapExact
    }
}

/// A mistake that a tracker can make. Each is known to be wrong: it is there for the explorer to find.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum TrackerFlaw {
    /// Marks a block before it is on its free list: the reporter may take the mark, not see the
    /// block, and forget it.
    MarkedBeforeFree,
    /// Does not wait for frees that still set bits in the bitmap that was swapped out.
    NoGracePeriod,
    /// Clears a section's bit after the scan of that section.
    ClearedAfterScan,
    /// Counts the moves that isolation itself makes as frees, and never comes to rest.
    SelfTrigger,
    /// Passes the lock of only one of a section's zones: a free under the other's lock may have found
    /// the section marked and not be through.
    OneZoneLock,
}

impl TrackerFlaw {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The trackers that can make this mistake; the others ignore it.
    pub fn trackers(self) -> &'static [TrackerKind] {
        match self {
            Self::MarkedBeforeFree => &[TrackerKind::ZoneBitmap],
            Self::NoGracePeriod => &[TrackerKind::ZoneBitmapRcu],
            Self::ClearedAfterScan => &[TrackerKind::SectionBitmap, TrackerKind::SectionBit],
            Self::SelfTrigger | Self::OneZoneLock => &[TrackerKind::SectionBit],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tracker_is_parsed_by_name_and_documented() {
        let page = include_str!("../../../../docs/design/model.md");
        for &kind in TrackerKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert!(page.contains(&format!("\n| `{kind}` |")), "{kind} has no row in model.md");
        }
        assert_eq!(TrackerKind::NAMES.len(), TrackerKind::ALL.len());
    }
}
