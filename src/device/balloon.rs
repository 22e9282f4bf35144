//! The state of the device, and what a chain on each of its queues means.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use log::{info, warn};

use super::chain::ChainHead;
use super::config_space::ConfigSpace;
use super::features::{
    self, Features, QueueRole, VIRTIO_BALLOON_F_PAGE_POISON, VIRTIO_BALLOON_F_REPORTING,
};
use super::{DeviceOptions, reporting};
use crate::log_limit::LogLimit;
use crate::memory::{GuestMemory, GuestRange};
use crate::metrics::{Counters, SkipReason};

/// One virtio-balloon device.
pub struct Balloon {
    options: DeviceOptions,
    acked: AtomicU64,
    config: Mutex<ConfigSpace>,
    /// Ranges of the chain being served: kept, so that a chain costs no allocation.
    ranges: Mutex<Vec<GuestRange>>,
    counters: Arc<Counters>,
    limit: LogLimit,
}

impl Balloon {
    /// A device that no driver has touched.
    pub fn new(options: DeviceOptions, counters: Arc<Counters>) -> Self {
        Self {
            options,
            acked: AtomicU64::new(0),
            config: Mutex::default(),
            ranges: Mutex::default(),
            counters,
            limit: LogLimit::default(),
        }
    }

    /// The feature bits that the device offers.
    pub fn offered(&self) -> u64 {
        features::offered(&self.options)
    }

    /// Takes over the features that the driver acked.
    ///
    /// The configuration space stays: Linux writes `poison_val` before its features arrive here.
    pub fn set_acked_features(&self, features: u64) {
        let old = self.acked.swap(features, Ordering::Relaxed);
        if old == features {
            return;
        }
        // A guest may set its driver up as often as it likes.
        self.limit.run(|| {
            info!("features {features:#x} acked");
            if !Features(features).has(VIRTIO_BALLOON_F_REPORTING) {
                warn!(
                    "free page reporting (bit 5) is not among the acked features: the guest does \
                     not know it or has it off, or the VMM masks the device's feature bits, as \
                     cloud-hypervisor does without a patch"
                );
            }
        });
    }

    /// The configuration space, locked.
    pub fn config(&self) -> std::sync::MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one chain: hands the ranges that it reports, if they may be discarded, to `discard`,
    /// as they came and not checked against guest memory.
    ///
    /// When this returns the chain may be returned to the driver, whatever was in it.
    pub fn serve(
        &self,
        role: QueueRole,
        head: ChainHead,
        memory: &GuestMemory,
        discard: impl FnOnce(&mut Vec<GuestRange>),
    ) {
        match role {
            QueueRole::Inflate => self.counters.inflated(0, 0),
            QueueRole::Deflate => self.counters.deflated(0, 0),
            QueueRole::Reporting => {
                let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
                reporting::collect(head, memory, &mut ranges, &self.counters, &self.limit);
                match self.forbids_discard() {
                    Some(reason) => {
                        let bytes = ranges.iter().map(GuestRange::len).sum();
                        self.counters.skip(reason, bytes);
                    }
                    None => discard(&mut ranges),
                }
            }
        }
    }

    /// Why reported pages must keep their contents; `None` if they may go.
    fn forbids_discard(&self) -> Option<SkipReason> {
        let acked = Features(self.acked.load(Ordering::Relaxed));
        if !acked.has(VIRTIO_BALLOON_F_REPORTING) {
            return Some(SkipReason::NotNegotiated);
        }
        // A discarded page reads as zeros, so zero is the one poison that survives (5.5.6.7.2).
        let poisoned = acked.has(VIRTIO_BALLOON_F_PAGE_POISON) && self.config().poison_val() != 0;
        poisoned.then_some(SkipReason::Poisoned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    const REPORTING: u64 = 1 << VIRTIO_BALLOON_F_REPORTING;
    const POISON: u64 = 1 << VIRTIO_BALLOON_F_PAGE_POISON;

    /// What a device with these acked features and this poison hands on of a report of one page.
    fn serve(role: QueueRole, acked: u64, poison: u32) -> Option<Vec<GuestRange>> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let flags = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        memory.write_obj(Descriptor::new(0x8000, 0x1000, flags, 0), GuestAddress(0)).unwrap();
        let balloon = Balloon::new(DeviceOptions::default(), Arc::default());
        balloon.config().write(12, &poison.to_le_bytes());
        balloon.set_acked_features(acked);
        let head = ChainHead { table: GuestAddress(0), queue_size: 8, index: 0 };
        let mut handed = None;
        balloon.serve(role, head, &memory, |ranges| handed = Some(ranges.clone()));
        handed
    }

    #[test]
    fn reported_pages_are_handed_on_unless_something_forbids_it() {
        let page = Some(vec![GuestRange::new(0x8000, 0x1000).unwrap()]);
        let reporting = QueueRole::Reporting;
        assert_eq!(serve(reporting, REPORTING, 0), page);
        assert_eq!(serve(reporting, REPORTING | POISON, 0), page);
        // Not acked, so the field means nothing.
        assert_eq!(serve(reporting, REPORTING, 7), page);
        assert_eq!(serve(reporting, REPORTING | POISON, 7), None);
        assert_eq!(serve(reporting, 0, 0), None);
        assert_eq!(serve(QueueRole::Inflate, REPORTING, 0), None);
        assert_eq!(serve(QueueRole::Deflate, REPORTING, 0), None);
    }
}
