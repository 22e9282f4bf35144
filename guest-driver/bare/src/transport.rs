// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The modern virtio PCI transport (virtio 1.2, 4.1), without interrupts.

use core::ptr::{read_volatile, write_volatile};

use guest_driver::ram::Gpa;
use guest_driver::virtio::layout::RingLayout;

use crate::paging;
use crate::pci::PciDevice;

const VENDOR: u32 = 0x1af4;
/// What a device id of virtio is added to.
const MODERN: u32 = 0x1040;
/// `PCI_CAP_ID_VNDR`.
const CAP_VENDOR: u8 = 9;
/// `cfg_type` of the structures (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_DEVICE: u8 = 4;
/// BARs of a device.
const BARS: u8 = 6;

/// Fields of `virtio_pci_common_cfg` (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(super) const DEVICE_FEATURE: u64 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const NUM_QUEUES: u64 = 18;
    pub(super) const DEVICE_STATUS: u64 = 20;
    pub(super) const CONFIG_GENERATION: u64 = 21;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
}

/// Bits of the device status (2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u8 = 1;
    pub(super) const DRIVER: u8 = 2;
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
}

/// A structure in device memory; each field is accessed by its width (4.1.3.1).
#[derive(Clone, Copy)]
struct Window(u64);

impl Window {
    fn read<T: Copy>(self, offset: u64) -> T {
        // SAFETY: within a structure that the device's capability describes, mapped when it was found.
        unsafe { read_volatile((self.0 + offset) as *const T) }
    }

    fn write<T: Copy>(self, offset: u64, value: T) {
        // SAFETY: as for `read`; the device acts on memory only through rings that the driver made.
        unsafe { write_volatile((self.0 + offset) as *mut T, value) };
    }
}

/// A virtio device on PCI.
pub(crate) struct Transport {
    pci: PciDevice,
    common: Window,
    notify: Window,
    notify_multiplier: u64,
    device: Window,
}

/// Where a queue is notified.
#[derive(Clone, Copy)]
pub(crate) struct Bell {
    window: Window,
    queue: u16,
}

impl Bell {
    /// Notifies the device.
    pub(crate) fn ring(self) {
        self.window.write(0, self.queue);
    }
}

impl Transport {
    /// The first device of this type (5) on bus 0; none if there is none, or it lacks a structure.
    pub(crate) fn find(device_type: u32) -> Option<Self> {
        let pci = PciDevice::find(VENDOR | (MODERN + device_type) << 16)?;
        pci.enable();
        let [mut common, mut notify, mut device] = [None; 3];
        for capability in pci.capabilities().filter(|capability| capability.byte(0) == CAP_VENDOR) {
            let (kind, bar) = (capability.byte(3), capability.byte(4));
            if bar >= BARS {
                continue;
            }
            let at = pci.bar(bar.into()) + u64::from(capability.word(8));
            let slot = match kind {
                CAP_COMMON => &mut common,
                CAP_NOTIFY => &mut notify,
                CAP_DEVICE => &mut device,
                _ => continue,
            };
            // The first of a kind is the one that the device prefers (4.1.4.1).
            if slot.is_none() {
                paging::map_device(at);
                *slot = Some((Window(at), capability.word(16)));
            }
        }
        let ((common, _), (notify, multiplier), (device, _)) = (common?, notify?, device?);
        Some(Self { pci, common, notify, notify_multiplier: multiplier.into(), device })
    }

    /// Its number on the bus.
    pub(crate) fn number(&self) -> u32 {
        self.pci.number
    }

    /// Resets the device and says that there is a driver.
    pub(crate) fn reset(&self) {
        self.set_status(0);
        while self.status() != 0 {
            core::hint::spin_loop();
        }
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
    }

    /// The features that the device offers.
    pub(crate) fn offered(&self) -> u64 {
        let half = |index: u32| {
            self.common.write(common::DEVICE_FEATURE_SELECT, index);
            u64::from(self.common.read::<u32>(common::DEVICE_FEATURE))
        };
        half(0) | half(1) << 32
    }

    /// Acks features; says whether the device takes them.
    pub(crate) fn accept(&self, features: u64) -> bool {
        for (index, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.common.write(common::DRIVER_FEATURE_SELECT, index);
            self.common.write(common::DRIVER_FEATURE, half);
        }
        self.set_status(self.status() | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// Lets the device work.
    pub(crate) fn driver_ok(&self) {
        self.set_status(self.status() | status::DRIVER_OK);
    }

    /// The device status (2.1).
    pub(crate) fn status(&self) -> u8 {
        self.common.read(common::DEVICE_STATUS)
    }

    fn set_status(&self, status: u8) {
        self.common.write(common::DEVICE_STATUS, status);
    }

    /// How many queues the device has at most.
    pub(crate) fn queues(&self) -> u16 {
        self.common.read(common::NUM_QUEUES)
    }

    /// The largest size of a queue; zero if it is not there.
    pub(crate) fn queue_size(&self, queue: u16) -> u16 {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.read(common::QUEUE_SIZE)
    }

    /// Tells the device of a queue and enables it.
    pub(crate) fn set_queue(&self, queue: u16, ring: &RingLayout) -> Bell {
        self.common.write(common::QUEUE_SELECT, queue);
        self.common.write(common::QUEUE_SIZE, ring.size());
        let parts = [
            (common::QUEUE_DESC, ring.desc()),
            (common::QUEUE_DRIVER, ring.avail()),
            (common::QUEUE_DEVICE, ring.used()),
        ];
        for (offset, Gpa(address)) in parts {
            self.common.write(offset, address as u32);
            self.common.write(offset + 4, (address >> 32) as u32);
        }
        let notify = u64::from(self.common.read::<u16>(common::QUEUE_NOTIFY_OFF));
        self.common.write(common::QUEUE_ENABLE, 1_u16);
        let window = Window(self.notify.0 + notify * self.notify_multiplier);
        Bell { window, queue }
    }

    /// 32 bits of the device's configuration. They are read again while the device changes it (2.5.1).
    pub(crate) fn config(&self, offset: u32) -> u32 {
        loop {
            let before = self.common.read::<u8>(common::CONFIG_GENERATION);
            let value = self.device.read(offset.into());
            if self.common.read::<u8>(common::CONFIG_GENERATION) == before {
                return value;
            }
        }
    }

    /// Writes 32 bits of the device's configuration.
    pub(crate) fn set_config(&self, offset: u32, value: u32) {
        self.device.write(offset.into(), value);
    }
}
