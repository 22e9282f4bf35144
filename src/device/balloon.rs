// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of the device, and what a chain on each of its queues means.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use log::{error, info, warn};

use super::chain::{ChainHead, Outcome};
use super::config_space::{BALLOON_PAGE_SIZE, ConfigSpace, TargetError, pages as to_pages};
use super::driver::{DriverState, Seen};
use super::features::{self, DEVICE_FEATURES, Feature, Features, NUM_QUEUES, QueueRole};
use super::hinting::{Hinting, HintingError, HintingStatus};
use super::log::DeviceLog;
use super::options::{DeviceOptions, IntervalError};
use super::saved::{RestoreError, SavedBalloon};
use super::statistics::{self, Sample};
use super::target::TargetRefused;
use super::{pages, reporting};
use crate::discard::{GuestMemory, GuestRange};
use crate::lock::lock;
use crate::metrics::{Counters, Named, SkipReason};

/// One virtio-balloon device.
///
/// Everything takes `&self`: the worker serves chains while the control thread and the operator look
/// and set. Where two of the locks are held, [`Balloon::hinting`]'s was taken first.
pub struct Balloon {
    options: DeviceOptions,
    /// `None` until a driver has acked any.
    acked: Mutex<Option<Features>>,
    seen: Mutex<Seen>,
    config: Mutex<ConfigSpace>,
    statistics: Mutex<Polling>,
    hinting: Mutex<Hinting>,
    /// The configuration space has changed, and the driver was not told.
    config_changed: AtomicBool,
    /// The operator wants the target, whatever it leaves to the guest.
    target_forced: AtomicBool,
    /// The log says that the target is refused.
    refusal_logged: AtomicBool,
    /// Bytes of memory that the frontend has announced; zero for none.
    memory_bytes: AtomicU64,
    /// It has changed by a chain.
    changed_by_chain: AtomicBool,
    /// Ranges of the chain being served: kept, so that a chain costs no allocation.
    ranges: Mutex<Vec<GuestRange>>,
    counters: Arc<Counters>,
    log: DeviceLog,
}

/// How statistics are polled, and what came of it.
struct Polling {
    interval: Duration,
    sample: Option<Sample>,
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
    pub fn new(options: DeviceOptions, counters: Arc<Counters>) -> Self {
        let balloon = Self {
            options,
            acked: Mutex::default(),
            seen: Mutex::default(),
            config: Mutex::default(),
            statistics: Mutex::new(Polling { interval: options.statistics_interval, sample: None }),
            hinting: Mutex::new(Hinting::new(first_hint_id())),
            config_changed: AtomicBool::new(false),
            target_forced: AtomicBool::new(options.force_target),
            refusal_logged: AtomicBool::new(false),
            memory_bytes: AtomicU64::new(0),
            changed_by_chain: AtomicBool::new(false),
            ranges: Mutex::default(),
            counters,
            log: DeviceLog::default(),
        };
        if let Err(error) = balloon.set_target(options.target_bytes, options.force_target) {
            warn!("the balloon stays empty: {error}");
        }
        balloon
    }

    /// What the device was made with.
    pub fn options(&self) -> DeviceOptions {
        self.options
    }

    /// The feature bits that the device offers.
    pub fn offered(&self) -> u64 {
        features::offered(&self.options)
    }

    /// A frontend has connected. What its driver told in a session before stays, in case it is the
    /// same driver, and is not shown until there is one.
    pub fn begin_session(&self) {
        *lock(&self.seen) = Seen::default();
    }

    /// Takes over the features that the driver acked.
    ///
    /// The configuration space stays: Linux writes `poison_val` before its features arrive here.
    pub fn set_acked_features(&self, features: u64) {
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
    fn see_acked(&self, features: Features) -> Option<Features> {
        let mut seen = lock(&self.seen);
        seen.ran = false;
        seen.acked.replace(features)
    }

    /// The features that the driver acked; `None` if there is no driver.
    pub fn acked_features(&self) -> Option<u64> {
        lock(&self.acked).map(|features| features.0)
    }

    /// The features that were acked in this session.
    pub fn session_features(&self) -> Option<u64> {
        lock(&self.seen).acked.map(|features| features.0)
    }

    /// A queue runs.
    pub fn queue_runs(&self) {
        lock(&self.seen).ran = true;
    }

    /// How far the driver has come, where these queues run.
    pub fn driver(&self, connected: bool, running: [bool; NUM_QUEUES]) -> DriverState {
        lock(&self.seen).state(connected, running)
    }

    /// `size` bytes of the configuration space from `offset` on, for a driver of which a queue runs
    /// or not. A driver that begins reads nothing that the one before it has written.
    pub fn read_config(&self, offset: u32, size: u32, any_queue_runs: bool) -> Vec<u8> {
        let config = self.config_for_driver();
        match lock(&self.seen).is_current(any_queue_runs) {
            true => config.read(offset, size),
            false => config.for_a_driver_that_begins().read(offset, size),
        }
    }

    /// Takes over what the driver, of which a queue runs or not, has written to the configuration
    /// space.
    pub fn write_config(&self, offset: u32, bytes: &[u8], any_queue_runs: bool) {
        let begins = !lock(&self.seen).is_current(any_queue_runs);
        self.config().write(offset, bytes, begins);
    }

    /// Whether the driver tells before it uses a page of the balloon again (virtio 1.3, 5.5.6.1).
    /// Then [`Balloon::serve`] hands on the pages that are deflated, too; none where they cannot be
    /// read.
    pub fn must_tell_host(&self) -> bool {
        self.acked().has(Feature::MustTellHost)
    }

    fn acked(&self) -> Features {
        lock(&self.acked).unwrap_or_default()
    }

    /// The device as it is for a new driver: what the last one wrote and told goes, what the
    /// operator set stays.
    pub fn reset(&self) {
        *lock(&self.acked) = None;
        *lock(&self.seen) = Seen::default();
        let mut hinting = lock(&self.hinting);
        hinting.reset();
        let mut config = self.config();
        config.reset();
        config.set_free_page_hint_cmd_id(hinting.command_id());
        drop((config, hinting));
        lock(&self.statistics).sample = None;
        // It will read all of it.
        self.config_changed.store(false, Ordering::Relaxed);
    }

    /// The queue with this index begins with a used index of 0: most likely nothing was ever
    /// returned on it, and what is known of it came from another driver, that of a guest before this
    /// one or before a reboot. Or an index has come round, in a daemon that took another one's
    /// place: `untouched` says that the ring shows no trace of use.
    ///
    /// Nothing is concluded for the poison value: pages would be lost if that were wrong.
    pub fn queue_is_fresh(&self, index: usize, untouched: bool) {
        match self.role(index) {
            Some(QueueRole::Inflate) => self.config().set_actual(untouched.then_some(0)),
            Some(QueueRole::Statistics) => lock(&self.statistics).sample = None,
            Some(QueueRole::Reporting) => lock(&self.seen).reported = false,
            _ => {}
        }
    }

    /// What the queue with this index carries in this session; `None` if nothing that was
    /// negotiated.
    pub fn negotiated_role(&self, index: usize) -> Option<QueueRole> {
        let acked = lock(&self.seen).acked?;
        features::role(acked, index).filter(|_| features::is_negotiated(acked, index))
    }

    /// What the queue with this index carries; `None` past the last one.
    pub fn role(&self, queue: usize) -> Option<QueueRole> {
        features::role(self.acked(), queue)
    }

    /// The configuration space, locked.
    pub fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config)
    }

    /// Takes note that the configuration space has changed and that the driver, if there is one,
    /// could not be told.
    pub fn owe_config_change(&self) {
        if self.acked_features().is_some() {
            self.config_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the configuration space has changed without the driver's knowledge since this was
    /// asked last, by a chain that was served or by [`Balloon::owe_config_change`]: then the driver
    /// is to be told ([`crate::state::State::tell_driver`]).
    pub fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::Relaxed)
    }

    /// Whether a chain has changed the configuration space since this was asked last.
    pub fn take_changed_by_chain(&self) -> bool {
        self.changed_by_chain.swap(false, Ordering::Relaxed)
    }

    /// Sets how many bytes are wanted in the balloon. The driver is to be told
    /// ([`crate::state::State::announce_change`]).
    ///
    /// `forced` lets it take more than [`super::largest_target`], now and from a guest to come.
    ///
    /// # Errors
    /// [`TargetError`]; the target stays.
    pub fn set_target(&self, bytes: u64, forced: bool) -> Result<(), TargetError> {
        let pages = to_pages(bytes)?;
        let mut config = self.config();
        config.set_num_pages(pages);
        self.target_forced.store(forced, Ordering::Relaxed);
        self.refusal_logged.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Takes note of how many bytes of memory the frontend has announced; zero for no frontend.
    pub fn set_memory_bytes(&self, bytes: u64) {
        self.memory_bytes.store(bytes, Ordering::Relaxed);
        if bytes == 0 {
            self.refusal_logged.store(false, Ordering::Relaxed);
        }
    }

    /// Bytes of memory that the guest has; `None` without a frontend.
    ///
    /// What the frontend announces may hold memory that is not plugged (virtio-mem), so a smaller
    /// total in the guest's own statistics counts.
    pub fn memory_bytes(&self) -> Option<u64> {
        let announced = self.memory_bytes.load(Ordering::Relaxed);
        (announced > 0).then(|| self.guest_total().map_or(announced, |total| total.min(announced)))
    }

    /// Bytes of memory that the guest says it has, with what is in its balloon.
    ///
    /// Linux takes the balloon's pages out of its total, unless it may deflate on OOM
    /// (`adjust_managed_page_count` in `virtio_balloon.c`). Where it is not known how many those
    /// are, the total says nothing.
    fn guest_total(&self) -> Option<u64> {
        // Of this guest, and not of one before.
        lock(&self.seen).acked?;
        let total = self.statistics()?.values.total_bytes?;
        if self.acked().has(Feature::DeflateOnOom) {
            return Some(total);
        }
        Some(total.saturating_add(self.actual_bytes()?))
    }

    /// Why the target is kept from the guest, if it is: it leaves too little and is not forced.
    ///
    /// A target may be set before there is a guest, and meet one that is too small for it.
    pub fn refused_target(&self) -> Option<TargetRefused> {
        if self.target_forced.load(Ordering::Relaxed) {
            return None;
        }
        TargetRefused::check(self.target_bytes(), self.memory_bytes()?).err()
    }

    /// The configuration space as the driver reads it: a target that is refused reads as zero.
    fn config_for_driver(&self) -> ConfigSpace {
        let refused = self.refused_target();
        let mut config = *self.config();
        if let Some(refused) = refused {
            config.set_num_pages(0);
            if !self.refusal_logged.swap(true, Ordering::Relaxed) {
                error!("the guest keeps its memory, its target is refused: {refused}");
            }
        }
        config
    }

    /// How many bytes are wanted in the balloon.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.config().num_pages()) * BALLOON_PAGE_SIZE
    }

    /// How many bytes the driver says are in the balloon; `None` if it has not said so to this
    /// daemon.
    pub fn actual_bytes(&self) -> Option<u64> {
        self.config().told_actual().map(|pages| u64::from(pages) * BALLOON_PAGE_SIZE)
    }

    /// The statistics that the driver sent last.
    pub fn statistics(&self) -> Option<Sample> {
        lock(&self.statistics).sample
    }

    /// How often statistics are polled; zero for never.
    pub fn statistics_interval(&self) -> Duration {
        lock(&self.statistics).interval
    }

    /// Sets how often statistics are polled; zero for never.
    ///
    /// # Errors
    /// [`IntervalError`]; the interval stays.
    pub fn set_statistics_interval(&self, interval: Duration) -> Result<(), IntervalError> {
        self.options.check_interval(interval)?;
        lock(&self.statistics).interval = interval;
        Ok(())
    }

    /// Asks the driver for its free pages. It is to be told
    /// ([`crate::state::State::announce_change`]).
    ///
    /// # Errors
    /// [`HintingError`]; nothing changes.
    pub fn start_hinting(&self) -> Result<(), HintingError> {
        self.check_hinting()?;
        self.set_hinting(Hinting::start)
    }

    /// Whether the driver can be asked for its free pages.
    ///
    /// # Errors
    /// [`HintingError`]
    pub fn check_hinting(&self) -> Result<(), HintingError> {
        if !self.options.free_page_hints {
            return Err(HintingError::NotOffered);
        }
        if !self.acked().has(Feature::FreePageHint) {
            return Err(HintingError::NotAcked);
        }
        Ok(())
    }

    /// Asks the driver for no more free pages and lets it use those that it named. It is to be told
    /// ([`crate::state::State::announce_change`]).
    ///
    /// Does not wait for a chain that is being served. The driver gets its pages back after that,
    /// when [`Balloon::take_config_changed`] says so again.
    ///
    /// # Errors
    /// [`HintingError::NotRunning`].
    pub fn stop_hinting(&self) -> Result<(), HintingError> {
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
    pub fn hinting(&self) -> HintingStatus {
        lock(&self.hinting).status()
    }

    /// The device as another daemon needs it to go on under the same driver.
    pub fn save(&self) -> SavedBalloon {
        let next_hint_cmd_id = lock(&self.hinting).next_id();
        let config = *self.config();
        SavedBalloon {
            next_hint_cmd_id,
            acked_features: self.acked_features(),
            num_pages: config.num_pages(),
            actual: config.told_actual(),
            free_page_hint_cmd_id: config.free_page_hint_cmd_id(),
            poison_val: config.poison_is_known().then_some(config.poison_val()),
            statistics_interval: self.statistics_interval(),
        }
    }

    /// Goes on from what another device saved, its target included. A round of hinting that was
    /// under way there is over; [`Balloon::take_config_changed`] says that the driver is to be told.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing changes.
    pub fn restore(&self, saved: SavedBalloon) -> Result<(), RestoreError> {
        let acked = saved.acked_features.unwrap_or(0);
        // The transport's bits are negotiated with each frontend anew.
        let missing = acked & DEVICE_FEATURES & !self.offered();
        if missing != 0 {
            return Err(RestoreError::NotOffered { acked, missing });
        }
        // Without a statistics queue an interval means nothing, wherever it comes from.
        if self.options.statistics {
            self.set_statistics_interval(saved.statistics_interval)?;
        }
        *lock(&self.acked) = saved.acked_features.map(Features);
        if let Some(features) = saved.acked_features {
            self.see_acked(Features(features));
        }
        lock(&self.statistics).sample = None;
        let mut hinting = lock(&self.hinting);
        hinting.restore(saved.free_page_hint_cmd_id, saved.next_hint_cmd_id);
        let mut config = self.config();
        config.set_num_pages(saved.num_pages);
        // The daemon that it comes from has let the guest have it.
        self.target_forced.store(true, Ordering::Relaxed);
        config.set_actual(saved.actual);
        config.set_poison_val(saved.poison_val);
        config.set_free_page_hint_cmd_id(hinting.command_id());
        if hinting.command_id() != saved.free_page_hint_cmd_id {
            self.config_changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Serves one chain: hands the ranges that may be discarded, if there are any, to `discard`, as
    /// they came and not checked against guest memory.
    ///
    /// When this returns the chain may be returned to the driver, whatever was in it.
    pub fn serve(
        &self,
        role: QueueRole,
        head: ChainHead,
        memory: &GuestMemory,
        discard: impl FnOnce(&mut Vec<GuestRange>),
    ) -> Outcome {
        let (counters, log) = (&self.counters, &self.log);
        match role {
            QueueRole::Inflate => {
                let mut ranges = lock(&self.ranges);
                pages::inflate(head, memory, &mut ranges, counters, log);
                discard(&mut ranges);
            }
            QueueRole::Deflate => {
                pages::deflate(head, memory, counters, log);
                if self.must_tell_host() {
                    let mut ranges = lock(&self.ranges);
                    if !pages::deflated(head, memory, &mut ranges) {
                        // Empty stands for pages that cannot be told.
                        ranges.clear();
                    }
                    discard(&mut ranges);
                }
            }
            QueueRole::Statistics => {
                if let Some(sample) = statistics::read(head, memory, counters, log) {
                    lock(&self.statistics).sample = Some(sample);
                }
                return Outcome::Keep;
            }
            QueueRole::Hinting => self.serve_hints(head, memory, discard),
            QueueRole::Reporting => {
                lock(&self.seen).reported = true;
                let mut ranges = lock(&self.ranges);
                reporting::collect(head, memory, &mut ranges, counters, log);
                let forbidden = self.forbids_discard();
                log.poison_not_told(forbidden == Some(SkipReason::PoisonNotTold));
                match forbidden {
                    Some(reason) => {
                        let bytes = ranges.iter().map(GuestRange::len).sum();
                        counters.skip(reason, bytes);
                    }
                    None => discard(&mut ranges),
                }
            }
            QueueRole::Ambiguous => {
                reporting::turn_down(head, memory, counters);
                log.ambiguous_queue(true);
            }
        }
        Outcome::Return
    }

    /// Serves a chain of the hinting queue. `DONE` comes only when its pages are no longer touched.
    fn serve_hints(
        &self,
        head: ChainHead,
        memory: &GuestMemory,
        discard: impl FnOnce(&mut Vec<GuestRange>),
    ) {
        let mut ranges = lock(&self.ranges);
        let mut chain = lock(&self.hinting).begin();
        if let Err(error) = chain.collect(head, memory, &mut ranges, &self.counters) {
            DeviceLog::broken(&self.log.broken_hints, "a chain of hints", error);
        }
        let (count, bytes) = (ranges.len() as u64, ranges.iter().map(GuestRange::len).sum());
        self.counters.named(Named::Hinting, count, bytes);
        if count > 0 {
            discard(&mut ranges);
        }
        let mut hinting = lock(&self.hinting);
        if hinting.finish(chain, count, bytes) {
            self.config().set_free_page_hint_cmd_id(hinting.command_id());
            self.config_changed.store(true, Ordering::Relaxed);
            self.changed_by_chain.store(true, Ordering::Relaxed);
        }
    }

    /// Why reported pages must keep their contents; `None` if they may go.
    fn forbids_discard(&self) -> Option<SkipReason> {
        let acked = self.acked();
        if !acked.has(Feature::PageReporting) {
            return Some(SkipReason::NotNegotiated);
        }
        if !acked.has(Feature::PagePoison) {
            return None;
        }
        // A discarded page reads as zeros, so zero is the one poison that survives (5.5.6.7.2).
        let config = self.config();
        match config.poison_val() {
            0 if config.poison_is_known() => None,
            0 => Some(SkipReason::PoisonNotTold),
            _ => Some(SkipReason::Poisoned),
        }
    }
}

#[cfg(test)]
mod tests;
