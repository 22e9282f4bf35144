// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a frontend asks for when it connects.

use guest_driver::{
    ram::Gpa,
    virtio::{
        balloon::{self, QueueNumbering},
        balloon_driver::FreePages,
        feature,
    },
};
use std::time::Duration;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

/// How the backend learns of the guest's RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryHandover {
    /// One by one where VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS was negotiated, as QEMU does.
    #[default]
    Negotiated,
    /// VHOST_USER_SET_MEM_TABLE, as crosvm does whatever was negotiated.
    Table,
    /// VHOST_USER_ADD_MEM_REG for each region.
    Slots,
}

/// What a frontend asks for when it connects.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// The features to ack, of those that are offered.
    pub features: u64,
    /// Decides among `features` as Linux's driver does for a guest whose free pages need to hold
    /// this, and writes the `poison_val` that follows; by default all that is offered is acked.
    pub free_pages: Option<FreePages>,
    /// The protocol features to ack, of those that are offered.
    pub protocol_features: VhostUserProtocolFeatures,
    /// The numbering of the queues: Linux's or the specification's.
    pub numbering: QueueNumbering,
    /// The queues to set up; by default those that the acked features bring.
    pub queues: Option<Vec<u16>>,
    /// How many descriptors a queue has, a power of two.
    pub queue_size: u16,
    /// Where the rings lie, one behind the other and then the scratch area; by default from the
    /// start of the first region announced. A multiple of 4096.
    pub ring_area: Option<Gpa>,
    /// The regions to announce at first, by index; by default all.
    pub regions: Option<Vec<usize>>,
    /// How they are announced.
    pub memory: MemoryHandover,
    /// The `poison_val` to be written ahead of the features, which is when Linux writes it, if
    /// PAGE_POISON is among them and there is a configuration space. With none nothing is written:
    /// as by a driver that was there before the backend.
    pub poison: Option<u32>,
    /// How long the backend may take for an answer or for a chain.
    pub timeout: Duration,
}

impl AttachOptions {
    /// What the ring and the balloon driver know, without dirty logging.
    pub const KNOWN_FEATURES: u64 = feature::VERSION_1
        | feature::EVENT_IDX
        | feature::INDIRECT_DESC
        | feature::IN_ORDER
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
        | balloon::feature::MUST_TELL_HOST
        | balloon::feature::STATS_VQ
        | balloon::feature::DEFLATE_ON_OOM
        | balloon::feature::FREE_PAGE_HINT
        | balloon::feature::PAGE_POISON
        | balloon::feature::REPORTING
        | balloon::feature::DEVICE_INIT_REPORTED
        | balloon::feature::DEVICE_INIT_ON_INFLATE;

    /// What [`super::Attachment`] knows.
    pub const KNOWN_PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
        .union(VhostUserProtocolFeatures::LOG_SHMFD)
        .union(VhostUserProtocolFeatures::REPLY_ACK)
        .union(VhostUserProtocolFeatures::BACKEND_REQ)
        .union(VhostUserProtocolFeatures::CONFIG)
        .union(VhostUserProtocolFeatures::RESET_DEVICE)
        .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
        .union(VhostUserProtocolFeatures::DEVICE_STATE);
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            features: Self::KNOWN_FEATURES,
            free_pages: None,
            protocol_features: Self::KNOWN_PROTOCOL_FEATURES,
            numbering: QueueNumbering::Linux,
            queues: None,
            queue_size: 128,
            ring_area: None,
            regions: None,
            memory: MemoryHandover::Negotiated,
            poison: Some(0),
            timeout: Duration::from_secs(10),
        }
    }
}
