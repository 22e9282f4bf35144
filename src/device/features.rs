// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits, and the meaning of each queue that follows from those the driver acked.

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::DeviceOptions;

/// `VIRTIO_BALLOON_F_MUST_TELL_HOST`: the guest says so before it uses a page of the balloon.
pub const VIRTIO_BALLOON_F_MUST_TELL_HOST: u32 = 0;
/// `VIRTIO_BALLOON_F_STATS_VQ`: the guest tells how it uses its memory.
pub const VIRTIO_BALLOON_F_STATS_VQ: u32 = 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages out of the balloon when it has no
/// others.
pub const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`: the guest names its free pages when it is asked to.
pub const VIRTIO_BALLOON_F_FREE_PAGE_HINT: u32 = 3;
/// `VIRTIO_BALLOON_F_PAGE_POISON`: the guest tells what it fills its free pages with.
pub const VIRTIO_BALLOON_F_PAGE_POISON: u32 = 4;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest reports its free pages.
pub const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// The bits that belong to the kind of device, not to the transport (virtio 1.3, 2.2).
pub const DEVICE_FEATURES: u64 = (1 << 24) - 1;

/// Queues of the device: inflate, deflate, statistics, free page hints, reporting
/// (virtio 1.3, 5.5.2).
pub const NUM_QUEUES: usize = 5;

/// The largest ring that virtio allows (virtio 1.3, 2.7). A VMM that lets the guest choose may go
/// up to it, and a device that takes less fails to come up there.
pub const MAX_QUEUE_SIZE: usize = 32768;

/// What the device offers.
///
/// `PAGE_POISON` is what makes reporting work in a guest that clears its pages when it frees them:
/// Linux gives reporting up when such a guest cannot say so. `IN_ORDER` costs nothing, since chains
/// are served one after the other, and lets a frontend that lost its backend go on from the used
/// index.
pub fn offered(options: &DeviceOptions) -> u64 {
    let mut features = (1 << VIRTIO_F_VERSION_1)
        | (1 << VIRTIO_F_IN_ORDER)
        | (1 << VIRTIO_RING_F_EVENT_IDX)
        | (1 << VIRTIO_RING_F_INDIRECT_DESC)
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    for (offer, feature) in [
        (options.must_tell_host, VIRTIO_BALLOON_F_MUST_TELL_HOST),
        (options.statistics, VIRTIO_BALLOON_F_STATS_VQ),
        (options.deflate_on_oom, VIRTIO_BALLOON_F_DEFLATE_ON_OOM),
        (options.free_page_hints, VIRTIO_BALLOON_F_FREE_PAGE_HINT),
        (options.reporting, VIRTIO_BALLOON_F_PAGE_POISON),
        (options.reporting, VIRTIO_BALLOON_F_REPORTING),
    ] {
        if offer {
            features |= 1 << feature;
        }
    }
    features
}

/// The features that a driver has acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Whether bit `feature` was acked.
    pub fn has(self, feature: u32) -> bool {
        self.0 >> feature & 1 == 1
    }
}

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Hints in the specification's numbering and reports in Linux's: nobody can tell.
    Ambiguous,
}

/// The first queue that is there only with its feature.
const FIRST_OPTIONAL: usize = 2;
/// The queues that come with a feature, in the specification's order (virtio 1.3, 5.5.2).
const OPTIONAL: [(u32, QueueRole); NUM_QUEUES - FIRST_OPTIONAL] = [
    (VIRTIO_BALLOON_F_STATS_VQ, QueueRole::Statistics),
    (VIRTIO_BALLOON_F_FREE_PAGE_HINT, QueueRole::Hinting),
    (VIRTIO_BALLOON_F_REPORTING, QueueRole::Reporting),
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
pub fn role(acked: Features, index: usize) -> Option<QueueRole> {
    let optional = match index {
        0 => return Some(QueueRole::Inflate),
        1 => return Some(QueueRole::Deflate),
        FIRST_OPTIONAL..NUM_QUEUES => index - FIRST_OPTIONAL,
        _ => return None,
    };
    let negotiated = |(feature, role): &(u32, QueueRole)| acked.has(*feature).then_some(*role);
    let linux = OPTIONAL.iter().filter_map(negotiated).nth(optional);
    let specification = OPTIONAL.get(optional).and_then(negotiated);
    Some(match (linux, specification) {
        (Some(linux), Some(specification)) if linux != specification => QueueRole::Ambiguous,
        (Some(role), _) | (None, Some(role)) => role,
        (None, None) => QueueRole::Reporting,
    })
}

/// Whether a negotiated feature brings the queue with this index, in either numbering.
pub fn is_negotiated(acked: Features, index: usize) -> bool {
    let has = |(feature, _): &&(u32, QueueRole)| acked.has(*feature);
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
        let place = |bit: u64, feature: u32| (bits >> bit & 1) << feature;
        place(0, VIRTIO_BALLOON_F_STATS_VQ)
            | place(1, VIRTIO_BALLOON_F_FREE_PAGE_HINT)
            | place(2, VIRTIO_BALLOON_F_REPORTING)
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
            ..DeviceOptions::default()
        };
        assert_eq!(device(&all), 0b11_1111);
        assert_eq!(device(&DeviceOptions { must_tell_host: true, ..none }), 0b1);
        assert_eq!(device(&DeviceOptions { statistics: true, ..none }), 0b10);
        assert_eq!(device(&DeviceOptions { deflate_on_oom: true, ..none }), 0b100);
        assert_eq!(device(&DeviceOptions { free_page_hints: true, ..none }), 0b1000);
    }
}
