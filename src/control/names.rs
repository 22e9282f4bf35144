// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator reads for bits and kinds.

use crate::device::QueueRole;

/// Feature bits with names, by bit: those of the balloon (virtio 1.3, 5.5.3), of virtio (6) and of
/// vhost-user.
const FEATURES: [(u32, &str); 16] = [
    (0, "must_tell_host"),
    (1, "stats_vq"),
    (2, "deflate_on_oom"),
    (3, "free_page_hint"),
    (4, "page_poison"),
    (5, "page_reporting"),
    (26, "log_all"),
    (28, "indirect_desc"),
    (29, "event_idx"),
    (30, "protocol_features"),
    (32, "version_1"),
    (33, "access_platform"),
    (34, "ring_packed"),
    (35, "in_order"),
    (36, "order_platform"),
    (38, "notification_data"),
];

/// The names of the bits that are set; `bit_N` for those that have none here.
pub(super) fn features(bits: u64) -> Vec<String> {
    let name = |bit| match FEATURES.iter().find(|(known, _)| *known == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit_{bit}"),
    };
    (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(name).collect()
}

/// The name of what a queue carries.
pub(super) fn role(role: QueueRole) -> &'static str {
    match role {
        QueueRole::Inflate => "inflate",
        QueueRole::Deflate => "deflate",
        QueueRole::Statistics => "statistics",
        QueueRole::Hinting => "hinting",
        QueueRole::Reporting => "reporting",
        QueueRole::Ambiguous => "ambiguous",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name() {
        assert_eq!(features(1 << 5 | 1 << 32 | 1 << 40), ["page_reporting", "version_1", "bit_40"]);
        assert_eq!(features(u64::MAX).len(), 64);
        assert!(features(0).is_empty());
    }
}
