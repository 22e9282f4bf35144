// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits, and the meaning of each queue that follows from those the driver acked.

use strum::{FromRepr, IntoStaticStr, VariantArray};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::DeviceOptions;

/// A feature bit that the device offers or a driver may ack: those of the balloon (virtio 1.3,
/// 5.5.3), of virtio (section 6) and of vhost-user. The name in the status is the variant's in snake
/// case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u32)]
pub enum Feature {
    /// The driver tells the device before it uses a page of the balloon again.
    MustTellHost = 0,
    /// The driver sends statistics of the guest's memory.
    StatsVq = 1,
    /// The driver may deflate the balloon before the guest runs out of memory.
    DeflateOnOom = 2,
    /// The driver names its free pages on request.
    FreePageHint = 3,
    /// The driver says what it fills its free pages with.
    PagePoison = 4,
    /// The driver reports its free pages.
    PageReporting = 5,
    /// `VIRTIO_BALLOON_F_DEVICE_INIT_REPORTED`, proposed: the device says which reports are zero.
    DeviceInitReported = 6,
    /// `VIRTIO_BALLOON_F_DEVICE_INIT_ON_INFLATE`, proposed: the device says which inflated pages are
    /// zero.
    DeviceInitOnInflate = 7,
    /// `VHOST_F_LOG_ALL`: the frontend logs dirty pages.
    LogAll = 26,
    /// `VIRTIO_F_INDIRECT_DESC`
    IndirectDesc = VIRTIO_RING_F_INDIRECT_DESC,
    /// `VIRTIO_F_EVENT_IDX`
    EventIdx = VIRTIO_RING_F_EVENT_IDX,
    /// `VHOST_USER_F_PROTOCOL_FEATURES`
    ProtocolFeatures = 30,
    /// `VIRTIO_F_VERSION_1`
    #[strum(serialize = "version_1")]
    Version1 = VIRTIO_F_VERSION_1,
    /// `VIRTIO_F_ACCESS_PLATFORM`
    AccessPlatform = 33,
    /// `VIRTIO_F_RING_PACKED`
    RingPacked = 34,
    /// `VIRTIO_F_IN_ORDER`
    InOrder = VIRTIO_F_IN_ORDER,
    /// `VIRTIO_F_ORDER_PLATFORM`
    OrderPlatform = 36,
    /// `VIRTIO_F_NOTIFICATION_DATA`
    NotificationData = 38,
}

impl Feature {
    /// The feature as a set of one bit.
    pub const fn mask(self) -> u64 {
        1 << self as u32
    }

    /// The names of the bits that are set; `bit_N` for a bit that is no variant.
    pub fn names(bits: u64) -> Vec<String> {
        let name = |bit| match Self::from_repr(bit) {
            Some(feature) => <&str>::from(feature).to_owned(),
            None => format!("bit_{bit}"),
        };
        (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(name).collect()
    }

    /// Whether a device with these options offers the feature.
    ///
    /// `PAGE_POISON` is what makes reporting work in a guest that clears its pages when it frees
    /// them: Linux disables reporting when such a guest cannot say so. `IN_ORDER` costs nothing,
    /// since chains are served one after the other, and lets a frontend that lost its backend
    /// resume at the used index.
    fn is_offered(self, options: &DeviceOptions) -> bool {
        match self {
            Self::MustTellHost => options.must_tell_host,
            Self::StatsVq => options.statistics,
            Self::DeflateOnOom => options.deflate_on_oom,
            Self::FreePageHint => options.free_page_hints,
            Self::PagePoison | Self::PageReporting => options.reporting,
            Self::DeviceInitReported => options.init_reported,
            Self::DeviceInitOnInflate => options.init_on_inflate,
            Self::IndirectDesc
            | Self::EventIdx
            | Self::ProtocolFeatures
            | Self::Version1
            | Self::InOrder => true,
            Self::LogAll
            | Self::AccessPlatform
            | Self::RingPacked
            | Self::OrderPlatform
            | Self::NotificationData => false,
        }
    }
}

/// The bits that belong to the kind of device, not to the transport (virtio 1.3, 2.2).
pub(crate) const DEVICE_FEATURES: u64 = (1 << 24) - 1;

/// Queues of the device: inflate, deflate, statistics, free page hints, reporting
/// (virtio 1.3, 5.5.2).
pub(crate) const NUM_QUEUES: usize = 5;

/// The largest ring that virtio allows (virtio 1.3, 2.7). A VMM that lets the guest choose may go
/// up to it, and a device that takes less fails to come up there.
pub(crate) const MAX_QUEUE_SIZE: usize = 32768;

/// The feature bits that a device with these options offers.
pub(crate) fn offered(options: &DeviceOptions) -> u64 {
    let offered = Feature::VARIANTS.iter().filter(|feature| feature.is_offered(options));
    offered.fold(0, |bits, feature| bits | feature.mask())
}

/// The features that a driver has acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(pub u64);

impl Features {
    /// Whether `feature` was acked.
    pub(crate) fn has(self, feature: Feature) -> bool {
        self.0 & feature.mask() != 0
    }
}

/// What a queue carries. The name in the status is the variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum QueueRole {
    /// Pages that the driver gives to the balloon.
    Inflate,
    /// Pages that the driver takes back from the balloon.
    Deflate,
    /// How the guest uses its memory.
    Statistics,
    /// Free pages that the driver names during a round of hinting.
    Hinting,
    /// Free pages that the driver reports.
    Reporting,
    /// Hints in the numbering of the specification, reports in that of Linux: the device cannot tell.
    Ambiguous,
}

/// The first queue that is there only with its feature.
const FIRST_OPTIONAL: usize = 2;
/// The queues that come with a feature, in the specification's order (virtio 1.3, 5.5.2).
const OPTIONAL: [(Feature, QueueRole); NUM_QUEUES - FIRST_OPTIONAL] = [
    (Feature::StatsVq, QueueRole::Statistics),
    (Feature::FreePageHint, QueueRole::Hinting),
    (Feature::PageReporting, QueueRole::Reporting),
];

/// The role of the queue with this index under the `acked` features; `None` past the last queue.
///
/// The specification gives each queue an index of its own, Linux's transports
/// (`vp_find_vqs_msix`) number only the queues that were negotiated. Where an index means something
/// in one of the two, that is what it means; where they disagree it is
/// [`QueueRole::Ambiguous`], which takes hints and reports without statistics
/// ([`DeviceOptions::check`] refuses to offer that).
///
/// A queue that means nothing in either is reporting: a proposed change to Linux would have tried 3
/// if nothing but reports was negotiated. If reports were not negotiated they are turned down there.
pub(crate) fn role(acked: Features, index: usize) -> Option<QueueRole> {
    let optional = match index {
        0 => return Some(QueueRole::Inflate),
        1 => return Some(QueueRole::Deflate),
        FIRST_OPTIONAL..NUM_QUEUES => index - FIRST_OPTIONAL,
        _ => return None,
    };
    let negotiated = |(feature, role): &(Feature, QueueRole)| acked.has(*feature).then_some(*role);
    let linux = OPTIONAL.iter().filter_map(negotiated).nth(optional);
    let specification = OPTIONAL.get(optional).and_then(negotiated);
    Some(match (linux, specification) {
        (Some(linux), Some(specification)) if linux != specification => QueueRole::Ambiguous,
        (Some(role), _) | (None, Some(role)) => role,
        (None, None) => QueueRole::Reporting,
    })
}

/// Whether a negotiated feature brings the queue with this index, in either numbering.
pub(crate) fn is_negotiated(acked: Features, index: usize) -> bool {
    let has = |(feature, _): &&(Feature, QueueRole)| acked.has(*feature);
    match index {
        0 | 1 => true,
        FIRST_OPTIONAL..NUM_QUEUES => {
            let optional = index - FIRST_OPTIONAL;
            OPTIONAL.iter().filter(has).count() > optional || has(&&OPTIONAL[optional])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_driver::virtio::balloon::{BalloonQueue, QueueNumbering};

    /// Every set of optional queues, by the bits S, H and R, with the roles of queues 2, 3 and 4.
    #[test]
    fn every_combination_has_its_layout() {
        use QueueRole::{Ambiguous, Hinting as H, Reporting as R, Statistics as S};
        for (features, roles) in [
            // Nothing negotiated: what comes is turned down as reports.
            (0b000, [R, R, R]),
            (0b001, [S, R, R]),
            (0b010, [H, H, R]),
            (0b011, [S, H, R]),
            (0b100, [R, R, R]),
            (0b101, [S, R, R]),
            (0b110, [H, Ambiguous, R]),
            (0b111, [S, H, R]),
        ] {
            let acked = Features(acked(features));
            for (index, expected) in [QueueRole::Inflate, QueueRole::Deflate]
                .into_iter()
                .chain(roles)
                .map(Some)
                .chain([None])
                .enumerate()
            {
                assert_eq!(role(acked, index), expected, "queue {index} of {features:#b}");
            }
        }
    }

    #[test]
    fn a_queue_is_negotiated_with_its_feature() {
        for (features, negotiated) in [
            (0b000, [false, false, false]),
            (0b001, [true, false, false]),
            (0b100, [true, false, true]),
            (0b101, [true, true, true]),
            (0b111, [true, true, true]),
        ] {
            let found = [2, 3, 4].map(|index| is_negotiated(Features(acked(features)), index));
            assert_eq!(found, negotiated, "{features:#b}");
        }
        assert!(is_negotiated(Features(0), 0) && is_negotiated(Features(0), 1));
        assert!(!is_negotiated(Features(u64::MAX), NUM_QUEUES));
    }

    /// Bits S, H and R as acked features.
    fn acked(bits: u64) -> u64 {
        let place = |bit: u64, feature: Feature| (bits >> bit & 1) << feature as u32;
        place(0, Feature::StatsVq)
            | place(1, Feature::FreePageHint)
            | place(2, Feature::PageReporting)
    }

    /// Against the driver's side, which is written apart from this: 8 combinations, 5 queues, both
    /// numberings.
    #[test]
    fn a_driver_of_either_numbering_is_understood() {
        let mut compared = 0;
        for bits in 0..8 {
            let acked = acked(bits);
            for numbering in [QueueNumbering::Linux, QueueNumbering::Specification] {
                for queue in BalloonQueue::ALL {
                    let Some(index) = numbering.index(queue, acked) else { continue };
                    let expected = match queue {
                        // The one index that two queues claim.
                        _ if bits == 0b110 && index == 3 => QueueRole::Ambiguous,
                        BalloonQueue::Inflate => QueueRole::Inflate,
                        BalloonQueue::Deflate => QueueRole::Deflate,
                        BalloonQueue::Stats => QueueRole::Statistics,
                        BalloonQueue::FreePage => QueueRole::Hinting,
                        BalloonQueue::Reporting => QueueRole::Reporting,
                    };
                    let role = role(Features(acked), usize::from(index));
                    assert_eq!(role, Some(expected), "{queue:?} of {bits:#b}, {numbering:?}");
                    compared += 1;
                }
            }
        }
        // Two queues always, three in half of the combinations each.
        assert_eq!(compared, 2 * (2 * 8 + 3 * 4));
    }

    #[test]
    fn every_bit_has_the_name_of_its_feature() {
        let bits = Feature::PageReporting.mask() | Feature::Version1.mask() | 1 << 40;
        assert_eq!(Feature::names(bits), ["page_reporting", "version_1", "bit_40"]);
        let known = Feature::VARIANTS.iter().fold(0, |bits, feature| bits | feature.mask());
        assert!(Feature::names(known).iter().all(|name| !name.starts_with("bit_")));
        assert_eq!(Feature::names(known).len(), Feature::VARIANTS.len());
    }

    #[test]
    fn nothing_is_offered_that_was_not_asked_for() {
        let device = |options: &DeviceOptions| offered(options) & DEVICE_FEATURES;
        let none = DeviceOptions { reporting: false, ..DeviceOptions::default() };
        assert_eq!(device(&none), 0);
        assert_eq!(device(&DeviceOptions::default()), 0b11_0000);
        let all = DeviceOptions {
            statistics: true,
            free_page_hints: true,
            deflate_on_oom: true,
            must_tell_host: true,
            init_reported: true,
            init_on_inflate: true,
            ..DeviceOptions::default()
        };
        assert_eq!(device(&all), 0b1111_1111);
        assert_eq!(device(&DeviceOptions { init_on_inflate: true, ..none }), 0b1000_0000);
        assert_eq!(device(&DeviceOptions { must_tell_host: true, ..none }), 0b1);
        assert_eq!(device(&DeviceOptions { statistics: true, ..none }), 0b10);
        assert_eq!(device(&DeviceOptions { deflate_on_oom: true, ..none }), 0b100);
        assert_eq!(device(&DeviceOptions { free_page_hints: true, ..none }), 0b1000);
    }
}
