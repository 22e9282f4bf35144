// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of the device, and what a chain on each of its queues means.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use log::{error, info, warn};

use super::config_space::{BALLOON_PAGE_SIZE, ConfigSpace, TargetError, pages as to_pages};
use super::driver::{DriverState, Seen};
use super::features::{self, Feature, Features, NUM_QUEUES, QueueRole};
use super::hinting::{Hinting, HintingError, HintingStatus};
use super::log::DeviceLog;
use super::options::{DeviceOptions, IntervalError};
use super::queues::contents::Contents;
use super::statistics::Sample;
use super::target::{Lease, Squeeze, TargetRefused};
use crate::lock::lock;
use crate::metrics::Counters;

/// One virtio-balloon device.
///
/// Everything takes `&self`: the worker serves chains while the control thread and the operator look
/// and set. Where two of the locks are held, [`Balloon::hinting`]'s was taken first.
pub(crate) struct Balloon {
    options: DeviceOptions,
    /// `None` until a driver has acked any.
    pub(super) acked: Mutex<Option<Features>>,
    pub(super) seen: Mutex<Seen>,
    config: Mutex<ConfigSpace>,
    pub(super) statistics: Mutex<Polling>,
    pub(super) hinting: Mutex<Hinting>,
    /// The configuration space has changed, and the driver was not told.
    pub(super) config_changed: AtomicBool,
    /// The operator wants the target, whatever it leaves to the guest.
    pub(super) target_forced: AtomicBool,
    /// A target for a time, over that of the configuration space.
    pub(super) lease: Mutex<Option<Lease>>,
    /// What a reclaim wants for a time.
    pub(super) squeeze: Mutex<Squeeze>,
    /// The log says that the target is refused.
    pub(super) refusal_logged: AtomicBool,
    /// Bytes of memory that the frontend has announced; zero for none.
    memory_bytes: AtomicU64,
    /// It has changed by a chain.
    pub(super) changed_by_chain: AtomicBool,
    /// Of the chain being served: kept, so that a chain costs no allocation.
    pub(super) contents: Mutex<Contents>,
    pub(super) counters: Arc<Counters>,
    pub(super) log: DeviceLog,
}

/// How statistics are polled, and the last sample.
pub(super) struct Polling {
    interval: Duration,
    pub(super) sample: Option<Sample>,
}

/// The queue of which hints and reports may both be claimed.
const AMBIGUOUS_QUEUE: usize = 3;

/// An ID for the first round of hinting that no daemon before this one has given to the same driver,
/// unless it began rounds faster than one a second.
fn first_hint_id() -> u32 {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u32::try_from(since_1970.as_secs() % u64::from(u32::MAX)).unwrap_or_default()
}

impl Balloon {
    /// A device that no driver has touched, with options that
    /// [`DeviceOptions::check`] has found good.
    pub(crate) fn new(options: DeviceOptions, counters: Arc<Counters>) -> Self {
        let balloon = Self {
            options,
            acked: Mutex::default(),
            seen: Mutex::default(),
            config: Mutex::default(),
            statistics: Mutex::new(Polling { interval: options.statistics_interval, sample: None }),
            hinting: Mutex::new(Hinting::new(first_hint_id())),
            config_changed: AtomicBool::new(false),
            target_forced: AtomicBool::new(options.force_target),
            lease: Mutex::default(),
            squeeze: Mutex::default(),
            refusal_logged: AtomicBool::new(false),
            memory_bytes: AtomicU64::new(0),
            changed_by_chain: AtomicBool::new(false),
            contents: Mutex::default(),
            counters,
            log: DeviceLog::default(),
        };
        if let Err(error) = balloon.set_target(options.target_bytes, options.force_target) {
            warn!("the balloon stays empty: {error}");
        }
        balloon
    }

    /// What the device was made with.
    pub(crate) fn options(&self) -> DeviceOptions {
        self.options
    }

    /// The feature bits that the device offers.
    pub(crate) fn offered(&self) -> u64 {
        features::offered(&self.options)
    }

    /// A frontend has connected. What its driver told in a session before stays, in case it is the
    /// same driver, and is not shown until there is one.
    pub(crate) fn begin_session(&self) {
        *lock(&self.seen) = Seen::default();
        self.forget_times();
    }

    /// Takes over the features that the driver acked.
    ///
    /// The configuration space stays: Linux writes `poison_val` before its features arrive here.
    pub(crate) fn set_acked_features(&self, features: u64) {
        let features = Features(features);
        *lock(&self.acked) = Some(features);
        let before = self.see_acked(features);
        if features::role(features, AMBIGUOUS_QUEUE) != Some(QueueRole::Ambiguous) {
            self.log.ambiguous_queue(false);
        }
        if before == Some(features) {
            return;
        }
        // A guest may set its driver up as often as it likes.
        self.log.acked.run(|| {
            info!("features {:#x} acked", features.0);
            if self.options.reporting && !features.has(Feature::PageReporting) {
                warn!(
                    "free page reporting (bit 5) is not among the acked features: the guest does \
                     not know it or has it off, or the VMM masks the device's feature bits, as \
                     cloud-hypervisor does without a patch"
                );
            }
        });
    }

    /// Notes features that hold from now on; returns those before in this session.
    pub(super) fn see_acked(&self, features: Features) -> Option<Features> {
        let mut seen = lock(&self.seen);
        seen.ran = false;
        seen.acked.replace(features)
    }

    /// The features that the driver acked; `None` if there is no driver.
    pub(crate) fn acked_features(&self) -> Option<u64> {
        lock(&self.acked).map(|features| features.0)
    }

    /// The features that were acked in this session.
    pub(crate) fn session_features(&self) -> Option<u64> {
        lock(&self.seen).acked.map(|features| features.0)
    }

    /// A queue runs.
    pub(crate) fn queue_runs(&self) {
        lock(&self.seen).ran = true;
    }

    /// How far the driver has come, where these queues run.
    pub(crate) fn driver(&self, connected: bool, running: [bool; NUM_QUEUES]) -> DriverState {
        lock(&self.seen).state(connected, running)
    }

    /// `size` bytes of the configuration space from `offset` on, for a driver of which a queue runs
    /// or not. A driver that begins reads nothing that the one before it has written.
    pub(crate) fn read_config(&self, offset: u32, size: u32, any_queue_runs: bool) -> Vec<u8> {
        let config = self.config_for_driver();
        match lock(&self.seen).is_current(any_queue_runs) {
            true => config.read(offset, size),
            false => config.for_a_driver_that_begins().read(offset, size),
        }
    }

    /// Takes over what the driver, of which a queue runs or not, has written to the configuration
    /// space.
    pub(crate) fn write_config(&self, offset: u32, bytes: &[u8], any_queue_runs: bool) {
        let begins = !lock(&self.seen).is_current(any_queue_runs);
        self.config().write(offset, bytes, begins);
    }

    /// Whether the driver tells before it uses a page of the balloon again (virtio 1.3, 5.5.6.1).
    pub(crate) fn must_tell_host(&self) -> bool {
        self.acked().has(Feature::MustTellHost)
    }

    pub(super) fn acked(&self) -> Features {
        lock(&self.acked).unwrap_or_default()
    }

    /// The device as it is for a new driver: what the last one wrote and told goes, what the
    /// operator set stays.
    pub(crate) fn reset(&self) {
        *lock(&self.acked) = None;
        *lock(&self.seen) = Seen::default();
        let mut hinting = lock(&self.hinting);
        hinting.reset();
        let mut config = self.config();
        config.reset();
        config.set_free_page_hint_cmd_id(hinting.command_id());
        drop((config, hinting));
        lock(&self.statistics).sample = None;
        self.forget_times();
        // It will read all of it.
        self.config_changed.store(false, Ordering::Relaxed);
    }

    /// What the queue with this index carries in this session; `None` if nothing that was
    /// negotiated.
    pub(crate) fn negotiated_role(&self, index: usize) -> Option<QueueRole> {
        let acked = lock(&self.seen).acked?;
        features::role(acked, index).filter(|_| features::is_negotiated(acked, index))
    }

    /// What the queue with this index carries; `None` past the last one.
    pub(crate) fn role(&self, queue: usize) -> Option<QueueRole> {
        features::role(self.acked(), queue)
    }

    /// The configuration space, locked.
    pub(crate) fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config)
    }

    /// Takes note that the configuration space has changed and that the driver, if there is one,
    /// could not be told.
    pub(crate) fn owe_config_change(&self) {
        if self.acked_features().is_some() {
            self.config_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the configuration space has changed without the driver's knowledge since this was
    /// asked last, by a chain that was served or by [`Balloon::owe_config_change`]: then the driver
    /// must be notified ([`crate::state::State::tell_driver`]).
    pub(crate) fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::Relaxed)
    }

    /// Whether a chain has changed the configuration space since this was asked last.
    pub(crate) fn take_changed_by_chain(&self) -> bool {
        self.changed_by_chain.swap(false, Ordering::Relaxed)
    }

    /// Sets the base target of the balloon in bytes, and ends a lease. The driver must be notified
    /// ([`crate::state::State::announce_change`]).
    ///
    /// `forced` lets it take more than [`super::target::largest_target`], now and from a guest to come.
    ///
    /// # Errors
    /// [`TargetError`]; the target stays.
    pub(crate) fn set_target(&self, bytes: u64, forced: bool) -> Result<(), TargetError> {
        let pages = to_pages(bytes)?;
        let mut config = self.config();
        config.set_num_pages(pages);
        drop(config);
        self.target_forced.store(forced, Ordering::Relaxed);
        self.set_lease(None);
        Ok(())
    }

    /// Takes over a target that the VMM has set, and tells its driver itself, where an operator lets it;
    /// says whether.
    ///
    /// What it leaves to the guest is the VMM's business.
    pub(crate) fn set_target_of_vmm(&self, pages: u32) -> bool {
        let bytes = u64::from(pages) * BALLOON_PAGE_SIZE;
        let taken = self.options.target_from_vmm && self.set_target(bytes, true).is_ok();
        if taken {
            self.log.target_of_vmm.run(|| info!("target {bytes} bytes, by the VMM"));
        }
        taken
    }

    /// Takes note of how many bytes of memory the frontend has announced; zero for no frontend.
    pub(crate) fn set_memory_bytes(&self, bytes: u64) {
        self.memory_bytes.store(bytes, Ordering::Relaxed);
        if bytes == 0 {
            self.refusal_logged.store(false, Ordering::Relaxed);
        }
    }

    /// Bytes of memory that the guest has; `None` without a frontend.
    ///
    /// What the frontend announces may hold memory that is not plugged (virtio-mem), so a smaller
    /// total in the guest's own statistics counts.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let announced = self.memory_bytes.load(Ordering::Relaxed);
        (announced > 0).then(|| self.guest_total().map_or(announced, |total| total.min(announced)))
    }

    /// Bytes of memory that the guest says it has, with what is in its balloon.
    ///
    /// Linux takes the balloon's pages out of its total, unless it may deflate on OOM
    /// (`adjust_managed_page_count` in `virtio_balloon.c`). Those of the moment of the sample count:
    /// the balloon may have shrunk since. Where it is not known how many they are, the total says
    /// nothing.
    fn guest_total(&self) -> Option<u64> {
        // Of this guest, and not of one before.
        lock(&self.seen).acked?;
        let sample = self.statistics()?;
        let total = sample.values.total_bytes?;
        if self.acked().has(Feature::DeflateOnOom) {
            return Some(total);
        }
        Some(total.saturating_add(sample.balloon_bytes.or_else(|| self.actual_bytes())?))
    }

    /// Why the target is kept from the guest, if it is: it leaves too little and is not forced.
    ///
    /// A target may be set before there is a guest, and meet one that is too small for it.
    pub(crate) fn refused_target(&self) -> Option<TargetRefused> {
        let target = self.target();
        if target.is_forced() {
            return None;
        }
        TargetRefused::check(target.bytes(), self.memory_bytes()?).err()
    }

    /// The configuration space as the driver reads it: with the lease's target if there is one. A target
    /// that is refused reads as zero, and a smaller one than a reclaim wants as the reclaim's.
    fn config_for_driver(&self) -> ConfigSpace {
        let refused = self.refused_target();
        let squeeze = lock(&self.squeeze).pages;
        let lease = *lock(&self.lease);
        let mut config = *self.config();
        if let Some(lease) = lease {
            config.set_num_pages(lease.pages);
        }
        if let Some(refused) = refused {
            config.set_num_pages(0);
            if !self.refusal_logged.swap(true, Ordering::Relaxed) {
                error!("the guest keeps its memory, its target is refused: {refused}");
            }
        }
        if let Some(pages) = squeeze {
            config.set_num_pages(pages.max(config.num_pages()));
        }
        config
    }

    /// How many bytes are wanted in the balloon: those of a lease, or of the base target.
    pub(crate) fn target_bytes(&self) -> u64 {
        self.target().bytes()
    }

    /// How many bytes the driver says are in the balloon; `None` if it has not said so to this
    /// daemon.
    pub(crate) fn actual_bytes(&self) -> Option<u64> {
        self.config().told_actual().map(|pages| u64::from(pages) * BALLOON_PAGE_SIZE)
    }

    /// The statistics that the driver sent last.
    pub(crate) fn statistics(&self) -> Option<Sample> {
        lock(&self.statistics).sample
    }

    /// How often statistics are polled; zero for never.
    pub(crate) fn statistics_interval(&self) -> Duration {
        lock(&self.statistics).interval
    }

    /// Sets how often statistics are polled; zero for never.
    ///
    /// # Errors
    /// [`IntervalError`]; the interval stays.
    pub(crate) fn set_statistics_interval(&self, interval: Duration) -> Result<(), IntervalError> {
        self.options.check_interval(interval)?;
        lock(&self.statistics).interval = interval;
        Ok(())
    }

    /// Asks the driver for its free pages. It must be notified
    /// ([`crate::state::State::announce_change`]).
    ///
    /// # Errors
    /// [`HintingError`]; nothing changes.
    pub(crate) fn start_hinting(&self) -> Result<(), HintingError> {
        self.check_hinting()?;
        self.set_hinting(Hinting::start)
    }

    /// Whether the driver can be asked for its free pages.
    ///
    /// # Errors
    /// [`HintingError`]
    pub(crate) fn check_hinting(&self) -> Result<(), HintingError> {
        if !self.options.free_page_hints {
            return Err(HintingError::NotOffered);
        }
        if !self.acked().has(Feature::FreePageHint) {
            return Err(HintingError::NotAcked);
        }
        Ok(())
    }

    /// Asks the driver for no more free pages and lets it use those that it named. It must be notified
    /// ([`crate::state::State::announce_change`]).
    ///
    /// Does not wait for a chain that is being served. The driver gets its pages back after that,
    /// when [`Balloon::take_config_changed`] says so again.
    ///
    /// # Errors
    /// [`HintingError::NotRunning`].
    pub(crate) fn stop_hinting(&self) -> Result<(), HintingError> {
        self.set_hinting(Hinting::stop)
    }

    fn set_hinting(
        &self,
        change: impl FnOnce(&mut Hinting) -> Result<(), HintingError>,
    ) -> Result<(), HintingError> {
        let mut hinting = lock(&self.hinting);
        change(&mut hinting)?;
        self.config().set_free_page_hint_cmd_id(hinting.command_id());
        Ok(())
    }

    /// How the last round of hinting stands.
    pub(crate) fn hinting(&self) -> HintingStatus {
        lock(&self.hinting).status()
    }
}

#[cfg(test)]
mod tests;
