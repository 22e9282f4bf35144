// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which features the driver acks.

use super::super::balloon::{BalloonQueue, QueueNumbering, feature};
use super::super::feature::ACCESS_PLATFORM;

/// What the guest needs its free pages to hold when it allocates them again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreePages {
    /// Nothing: a user that needs a clear page clears it.
    #[default]
    Anything,
    /// Zeroes: pages are cleared when they are freed (`init_on_free`).
    Zeroes,
    /// A poison that is checked when they are allocated (`page_poisoning`).
    Poison(u8),
}

impl FreePages {
    /// The value for `poison_val`; none if it does not matter.
    pub fn poison_val(self) -> Option<u32> {
        match self {
            Self::Anything => None,
            Self::Zeroes => Some(0),
            Self::Poison(byte) => Some(u32::from_ne_bytes([byte; 4])),
        }
    }
}

/// What comes of the device's offer and the guest's needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The features to ack.
    pub features: u64,
    /// What has to be in the configuration space ahead of the first report.
    pub poison_val: Option<u32>,
}

impl Negotiated {
    /// Decides as Linux does (`virtballoon_validate`): a guest whose free pages must keep what they
    /// hold, and that cannot say what that is, does not report them. `known` are the features that
    /// the driver and its ring know.
    pub fn new(offered: u64, known: u64, free_pages: FreePages) -> Self {
        let mut features = offered & known;
        let mut poison_val = free_pages.poison_val();
        if poison_val.is_none() {
            features &= !feature::PAGE_POISON;
        } else if features & feature::PAGE_POISON == 0 {
            features &= !feature::REPORTING;
            poison_val = None;
        }
        // What the device initializes is zero, which such a guest would have to poison all the same.
        if poison_val.is_some_and(|value| value != 0) {
            features &= !(feature::DEVICE_INIT_REPORTED | feature::DEVICE_INIT_ON_INFLATE);
        }
        if features & feature::REPORTING == 0 {
            features &= !feature::DEVICE_INIT_REPORTED;
        }
        // The balloon's page frame numbers are physical ones, whatever the platform translates.
        features &= !ACCESS_PLATFORM;
        Self { features, poison_val }
    }

    /// The index of a queue; none if it was not negotiated.
    pub fn queue(&self, queue: BalloonQueue, numbering: QueueNumbering) -> Option<u16> {
        numbering.index(queue, self.features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = feature::REPORTING | feature::PAGE_POISON | feature::STATS_VQ;

    #[test]
    fn indifferent_guest_reports_without_page_poison() {
        let negotiated = Negotiated::new(ALL | ACCESS_PLATFORM, u64::MAX, FreePages::Anything);
        assert_eq!(negotiated.features, feature::REPORTING | feature::STATS_VQ);
        assert_eq!(negotiated.poison_val, None);
    }

    #[test]
    fn zero_pages_are_of_use_without_a_poison_only() {
        let init = feature::DEVICE_INIT_REPORTED | feature::DEVICE_INIT_ON_INFLATE;
        let acked = |offered: u64, free_pages| {
            Negotiated::new(offered, u64::MAX, free_pages).features & init
        };
        assert_eq!(acked(ALL | init, FreePages::Anything), init);
        assert_eq!(acked(ALL | init, FreePages::Zeroes), init);
        assert_eq!(acked(ALL | init, FreePages::Poison(0xaa)), 0);
        // Nothing is said of reports that are not made.
        let silent = feature::DEVICE_INIT_ON_INFLATE;
        assert_eq!(acked(init, FreePages::Anything), silent);
        assert_eq!(acked(init | feature::REPORTING, FreePages::Zeroes), silent);
    }

    #[test]
    fn a_guest_that_cares_says_so_or_does_not_report() {
        for (free_pages, value) in
            [(FreePages::Zeroes, 0), (FreePages::Poison(0xaa), 0xaaaa_aaaa_u32)]
        {
            let negotiated = Negotiated::new(ALL, ALL, free_pages);
            assert_eq!(negotiated, Negotiated { features: ALL, poison_val: Some(value) });

            // Not offered, or not known to the driver: the same.
            let deaf = ALL & !feature::PAGE_POISON;
            for (offered, known) in [(deaf, ALL), (ALL, deaf)] {
                let negotiated = Negotiated::new(offered, known, free_pages);
                let features = feature::STATS_VQ;
                assert_eq!(negotiated, Negotiated { features, poison_val: None });
                let queue = |queue| negotiated.queue(queue, QueueNumbering::Linux);
                assert_eq!(queue(BalloonQueue::Reporting), None);
                assert_eq!(queue(BalloonQueue::Stats), Some(2));
            }
        }
    }
}
