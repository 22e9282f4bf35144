// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon's driver: negotiation and queues.

use alloc::alloc::alloc_zeroed;
use alloc::format;
use alloc::string::{String, ToString};
use core::alloc::Layout;
use core::time::Duration;

use guest_driver::ram::Gpa;
use guest_driver::virtio::balloon::{BalloonQueue, DEVICE_ID, feature as balloon};
use guest_driver::virtio::balloon_driver::{
    FreePages, HintingQueue, Negotiated, Notify, PageQueue, ReportingQueue, Requests, StatsQueue,
};
use guest_driver::virtio::feature;
use guest_driver::virtio::layout::RingLayout;
use guest_driver::virtio::ring::DriverRing;

use crate::OWN_BYTES;
use crate::options::Options;
use crate::ram::Identity;
use crate::say;
use crate::transport::{Bell, Transport};

/// The features that this driver and its rings know.
const KNOWN: u64 = balloon::MUST_TELL_HOST
    | balloon::STATS_VQ
    | balloon::FREE_PAGE_HINT
    | balloon::REPORTING
    | feature::VERSION_1
    | feature::EVENT_IDX
    | feature::INDIRECT_DESC;
/// The features in which the device says what is zero.
const INIT: u64 = balloon::DEVICE_INIT_REPORTED | balloon::DEVICE_INIT_ON_INFLATE;
/// Entries of a queue at most.
const QUEUE_SIZE: u16 = 128;
const PAGE: u64 = 4096;

/// Notifies the device, and looks again instead of waiting.
pub(crate) struct Polled(Bell);

impl Notify for Polled {
    fn kick(&mut self) {
        self.0.ring();
    }

    fn wait(&mut self, timeout: Option<Duration>) -> bool {
        core::hint::spin_loop();
        timeout != Some(Duration::ZERO)
    }
}

/// The device with its queues.
pub(crate) struct Balloon {
    pub(crate) transport: Transport,
    pub(crate) inflate: PageQueue<Identity, Polled>,
    pub(crate) deflate: PageQueue<Identity, Polled>,
    pub(crate) stats: Option<StatsQueue<Identity, Polled>>,
    pub(crate) hinting: Option<HintingQueue<Identity, Polled>>,
    /// None where the device offers none.
    pub(crate) reporting: Option<Reporting>,
}

/// The driver's half of reporting.
pub(crate) type Reporting = ReportingQueue<Identity, Polled>;

impl Balloon {
    /// Finds the device, resets it and sets it up.
    ///
    /// # Errors
    /// When there is none, or it lacks a queue.
    pub(crate) fn attach(options: &Options) -> Result<Self, String> {
        let transport = Transport::find(DEVICE_ID).ok_or("there is no balloon device on bus 0")?;
        transport.reset();
        let offered = transport.offered();
        let known = if options.init { KNOWN | INIT } else { KNOWN };
        let negotiated = Negotiated::new(offered, known, FreePages::Anything);
        let acked = negotiated.features;
        say!(
            "device number={} queues={} offered={offered:#x} acked={acked:#x}",
            transport.number(),
            transport.queues()
        );
        if !transport.accept(acked) {
            return Err(format!("the device refused the features {acked:#x}"));
        }
        let memory = Identity { end: OWN_BYTES };
        let requests = |queue: BalloonQueue| -> Result<_, String> {
            let index = negotiated.queue(queue, options.numbering);
            let index = index.ok_or_else(|| format!("{queue:?} was not negotiated"))?;
            let size = transport.queue_size(index).min(QUEUE_SIZE);
            if size == 0 {
                return Err(format!("queue {index} ({queue:?}) is not there"));
            }
            let base = driver_memory(RingLayout::contiguous_bytes(size));
            let layout = RingLayout::contiguous(base, size).map_err(|error| error.to_string())?;
            let event_idx = acked & feature::EVENT_IDX != 0;
            let ring = DriverRing::new(memory, layout, event_idx);
            let mut ring = ring.map_err(|error| error.to_string())?;
            ring.suppress_used().map_err(|error| error.to_string())?;
            let bell = transport.set_queue(index, &layout);
            Ok(Requests::new(ring, Polled(bell)))
        };
        let pages = |queue| -> Result<_, String> {
            Ok(PageQueue::new(requests(queue)?, memory, driver_memory(PAGE), None))
        };
        let (mut inflate, deflate) = (pages(BalloonQueue::Inflate)?, pages(BalloonQueue::Deflate)?);
        if acked & balloon::DEVICE_INIT_ON_INFLATE != 0 {
            inflate = inflate.with_bitmap(driver_memory(PAGE));
        }
        let has = |queue: BalloonQueue| acked & queue.feature() != 0;
        let stats = has(BalloonQueue::Stats).then(|| requests(BalloonQueue::Stats)).transpose()?;
        let stats = stats.map(|requests| StatsQueue::new(requests, memory, driver_memory(PAGE)));
        let hinting = has(BalloonQueue::FreePage).then(|| requests(BalloonQueue::FreePage));
        let hinting = hinting
            .transpose()?
            .map(|requests| HintingQueue::new(requests, memory, driver_memory(PAGE), None));
        let indirect = options.indirect && acked & feature::INDIRECT_DESC != 0;
        let table = indirect.then(|| driver_memory(PAGE));
        let reporting = has(BalloonQueue::Reporting).then(|| requests(BalloonQueue::Reporting));
        let reporting = reporting.transpose()?.map(|requests| ReportingQueue::new(requests, table));
        let mut reporting = reporting.transpose().map_err(|error| error.to_string())?;
        if acked & balloon::DEVICE_INIT_REPORTED != 0 {
            reporting = reporting.map(Reporting::with_init);
        }
        transport.driver_ok();
        Ok(Self { transport, inflate, deflate, stats, hinting, reporting })
    }
}

/// Zeroed memory for rings and buffers. It is never freed: a device may access it until the next reset.
fn driver_memory(bytes: u64) -> Gpa {
    let layout = Layout::from_size_align(bytes as usize, PAGE as usize);
    // SAFETY: a ring and a page have bytes.
    let at = layout.map_or(core::ptr::null_mut(), |layout| unsafe { alloc_zeroed(layout) });
    assert!(!at.is_null(), "no memory left for {bytes} bytes of a queue");
    Gpa(at as u64)
}
