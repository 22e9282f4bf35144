//! The state of the device, and what a chain on each of its queues means.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};

use super::chain::{ChainHead, Outcome};
use super::config_space::{BALLOON_PAGE_SIZE, ConfigSpace, TargetError, pages as to_pages};
use super::features::{
    self, DEVICE_FEATURES, Features, QueueRole, VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    VIRTIO_BALLOON_F_PAGE_POISON, VIRTIO_BALLOON_F_REPORTING,
};
use super::hinting::{Hinting, HintingError, HintingStatus};
use super::options::{DeviceOptions, IntervalError};
use super::saved::{RestoreError, SavedBalloon};
use super::statistics::{self, Sample};
use super::{pages, reporting};
use crate::log_limit::LogLimit;
use crate::memory::{GuestMemory, GuestRange};
use crate::metrics::{Counters, SkipReason};

/// One virtio-balloon device.
///
/// Everything takes `&self`: the worker serves chains while the control thread and the operator look
/// and set. Where two of the locks are held, [`Balloon::hinting`]'s was taken first.
pub struct Balloon {
    options: DeviceOptions,
    /// `None` until a driver has acked any.
    acked: Mutex<Option<Features>>,
    config: Mutex<ConfigSpace>,
    statistics: Mutex<Polling>,
    hinting: Mutex<Hinting>,
    /// The configuration space has changed by what the driver did, and the driver was not told.
    config_changed: AtomicBool,
    /// Ranges of the chain being served: kept, so that a chain costs no allocation.
    ranges: Mutex<Vec<GuestRange>>,
    counters: Arc<Counters>,
    limit: LogLimit,
}

/// How statistics are polled, and what came of it.
struct Polling {
    interval: Duration,
    sample: Option<Sample>,
}

/// A panic while one of the locks is held leaves nothing half done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Balloon {
    /// A device that no driver has touched, with options that
    /// [`DeviceOptions::check`] has found good.
    pub fn new(options: DeviceOptions, counters: Arc<Counters>) -> Self {
        let balloon = Self {
            options,
            acked: Mutex::default(),
            config: Mutex::default(),
            statistics: Mutex::new(Polling { interval: options.statistics_interval, sample: None }),
            hinting: Mutex::default(),
            config_changed: AtomicBool::new(false),
            ranges: Mutex::default(),
            counters,
            limit: LogLimit::default(),
        };
        if let Err(error) = balloon.set_target(options.target_bytes) {
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

    /// Takes over the features that the driver acked.
    ///
    /// The configuration space stays: Linux writes `poison_val` before its features arrive here.
    pub fn set_acked_features(&self, features: u64) {
        let old = lock(&self.acked).replace(Features(features));
        if old == Some(Features(features)) {
            return;
        }
        // A guest may set its driver up as often as it likes.
        self.limit.run(|| {
            info!("features {features:#x} acked");
            if self.options.reporting && !Features(features).has(VIRTIO_BALLOON_F_REPORTING) {
                warn!(
                    "free page reporting (bit 5) is not among the acked features: the guest does \
                     not know it or has it off, or the VMM masks the device's feature bits, as \
                     cloud-hypervisor does without a patch"
                );
            }
        });
    }

    /// The features that the driver acked; `None` if there is no driver.
    pub fn acked_features(&self) -> Option<u64> {
        lock(&self.acked).map(|features| features.0)
    }

    fn acked(&self) -> Features {
        lock(&self.acked).unwrap_or_default()
    }

    /// The device as it is for a new driver: what the last one wrote and told goes, what the
    /// operator set stays.
    pub fn reset(&self) {
        *lock(&self.acked) = None;
        let mut hinting = lock(&self.hinting);
        hinting.reset();
        let mut config = self.config();
        config.set_actual(0);
        config.set_poison_val(0);
        config.set_free_page_hint_cmd_id(hinting.command_id());
        drop((config, hinting));
        lock(&self.statistics).sample = None;
    }

    /// What the queue with this index carries; `None` past the last one.
    pub fn role(&self, queue: usize) -> Option<QueueRole> {
        features::role(self.acked(), queue)
    }

    /// The configuration space, locked.
    pub fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config)
    }

    /// Whether the configuration space has changed while a chain was served, since this was asked
    /// last: then the driver is to be told ([`crate::state::Frontend::config_changed`]).
    pub fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::Relaxed)
    }

    /// Sets how many bytes are wanted in the balloon. The driver is to be told
    /// ([`crate::state::Frontend::config_changed`]).
    ///
    /// # Errors
    /// [`TargetError`]; the target stays.
    pub fn set_target(&self, bytes: u64) -> Result<(), TargetError> {
        let pages = to_pages(bytes)?;
        self.config().set_num_pages(pages);
        Ok(())
    }

    /// How many bytes are wanted in the balloon.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.config().num_pages()) * BALLOON_PAGE_SIZE
    }

    /// How many bytes the driver says are in the balloon.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.config().actual()) * BALLOON_PAGE_SIZE
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
    /// ([`crate::state::Frontend::config_changed`]).
    ///
    /// # Errors
    /// [`HintingError`]; nothing changes.
    pub fn start_hinting(&self) -> Result<(), HintingError> {
        if !self.options.free_page_hints {
            return Err(HintingError::NotOffered);
        }
        if !self.acked().has(VIRTIO_BALLOON_F_FREE_PAGE_HINT) {
            return Err(HintingError::NotAcked);
        }
        self.set_hinting(Hinting::start)
    }

    /// Asks the driver for no more free pages and lets it use those that it named. It is to be told
    /// ([`crate::state::Frontend::config_changed`]).
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
        let config = *self.config();
        SavedBalloon {
            acked_features: self.acked_features(),
            num_pages: config.num_pages(),
            actual: config.actual(),
            free_page_hint_cmd_id: config.free_page_hint_cmd_id(),
            poison_val: config.poison_val(),
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
        lock(&self.statistics).sample = None;
        let mut hinting = lock(&self.hinting);
        hinting.restore(saved.free_page_hint_cmd_id);
        let mut config = self.config();
        config.set_num_pages(saved.num_pages);
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
        let (counters, limit) = (&self.counters, &self.limit);
        match role {
            QueueRole::Inflate => {
                let mut ranges = lock(&self.ranges);
                pages::inflate(head, memory, &mut ranges, counters, limit);
                discard(&mut ranges);
            }
            QueueRole::Deflate => pages::deflate(head, memory, counters, limit),
            QueueRole::Statistics => {
                if let Some(sample) = statistics::read(head, memory, counters, limit) {
                    lock(&self.statistics).sample = Some(sample);
                }
                return Outcome::Keep;
            }
            QueueRole::Hinting => self.serve_hints(head, memory, discard),
            QueueRole::Reporting => {
                let mut ranges = lock(&self.ranges);
                reporting::collect(head, memory, &mut ranges, counters, limit);
                match self.forbids_discard() {
                    Some(reason) => {
                        let bytes = ranges.iter().map(GuestRange::len).sum();
                        counters.skip(reason, bytes);
                    }
                    None => discard(&mut ranges),
                }
            }
            QueueRole::Ambiguous => {
                reporting::turn_down(head, memory, counters);
                limit.run(|| {
                    warn!(
                        "queue 3 carries hints or reports, as who numbers the queues has it: \
                         nothing on it is discarded. The driver acked both and no statistics"
                    );
                });
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
            self.limit.run(|| warn!("a chain of hints breaks off: {error}"));
        }
        let (count, bytes) = (ranges.len() as u64, ranges.iter().map(GuestRange::len).sum());
        self.counters.hinted(count, bytes);
        if count > 0 {
            discard(&mut ranges);
        }
        let mut hinting = lock(&self.hinting);
        if hinting.finish(chain, count, bytes) {
            self.config().set_free_page_hint_cmd_id(hinting.command_id());
            self.config_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Why reported pages must keep their contents; `None` if they may go.
    fn forbids_discard(&self) -> Option<SkipReason> {
        let acked = self.acked();
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
    use super::super::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use super::super::features::VIRTIO_BALLOON_F_STATS_VQ;
    use super::super::hinting::HintingState;
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    const STATISTICS: u64 = 1 << VIRTIO_BALLOON_F_STATS_VQ;
    const HINTS: u64 = 1 << VIRTIO_BALLOON_F_FREE_PAGE_HINT;
    const REPORTING: u64 = 1 << VIRTIO_BALLOON_F_REPORTING;
    const POISON: u64 = 1 << VIRTIO_BALLOON_F_PAGE_POISON;

    /// Where a chain's first buffer lies.
    const BUFFER: u64 = 0x8000;

    fn everything() -> Balloon {
        let options = DeviceOptions {
            statistics: true,
            free_page_hints: true,
            deflate_on_oom: true,
            must_tell_host: true,
            ..DeviceOptions::default()
        };
        options.check().unwrap();
        Balloon::new(options, Arc::default())
    }

    /// Serves a chain of one buffer with these bytes, or of one page if there are none: what is
    /// handed on, and what is to become of the chain.
    fn serve(
        balloon: &Balloon,
        role: QueueRole,
        bytes: &[u8],
    ) -> (Option<Vec<GuestRange>>, Outcome) {
        let memory = memory();
        memory.write_slice(bytes, GuestAddress(BUFFER)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        let page = (BUFFER, 0x1000, WRITE, 0);
        write(&memory, TABLE, &[if len == 0 { page } else { (BUFFER, len, 0, 0) }]);
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        let mut handed = None;
        let outcome = balloon.serve(role, head, &memory, |ranges| handed = Some(ranges.clone()));
        (handed, outcome)
    }

    fn page(gpa: u64) -> Option<Vec<GuestRange>> {
        Some(vec![GuestRange::new(gpa, 0x1000).unwrap()])
    }

    #[test]
    fn reported_pages_are_handed_on_unless_something_forbids_it() {
        let reported = |acked, poison: u32| {
            let balloon = Balloon::new(DeviceOptions::default(), Arc::default());
            balloon.config().write(12, &poison.to_le_bytes());
            balloon.set_acked_features(acked);
            let (handed, outcome) = serve(&balloon, QueueRole::Reporting, &[]);
            assert_eq!(outcome, Outcome::Return);
            handed
        };
        assert_eq!(reported(REPORTING, 0), page(BUFFER));
        assert_eq!(reported(REPORTING | POISON, 0), page(BUFFER));
        // Not acked, so the field means nothing.
        assert_eq!(reported(REPORTING, 7), page(BUFFER));
        assert_eq!(reported(REPORTING | POISON, 7), None);
        assert_eq!(reported(0, 0), None);
    }

    #[test]
    fn inflated_pages_are_handed_on_whatever_their_poison_and_deflated_ones_never() {
        let balloon = everything();
        balloon.config().write(12, &7_u32.to_le_bytes());
        balloon.set_acked_features(POISON);
        let (handed, outcome) = serve(&balloon, QueueRole::Inflate, &3_u32.to_le_bytes());
        assert_eq!((handed, outcome), (page(0x3000), Outcome::Return));
        let (handed, outcome) = serve(&balloon, QueueRole::Deflate, &3_u32.to_le_bytes());
        assert_eq!((handed, outcome), (None, Outcome::Return));
    }

    #[test]
    fn an_ambiguous_queue_discards_nothing() {
        let balloon = everything();
        balloon.set_acked_features(HINTS | REPORTING);
        assert_eq!(balloon.role(3), Some(QueueRole::Ambiguous));
        assert_eq!(serve(&balloon, QueueRole::Ambiguous, &[]), (None, Outcome::Return));
        let snapshot = balloon.counters.snapshot();
        assert_eq!(snapshot.skipped_bytes(SkipReason::AmbiguousQueue), 0x1000);
    }

    #[test]
    fn a_statistics_buffer_is_read_and_kept() {
        let balloon = everything();
        let empty = serve(&balloon, QueueRole::Statistics, &[0; 20]);
        assert_eq!(empty, (None, Outcome::Keep));
        assert!(balloon.statistics().is_none());
        let bytes = [&4_u16.to_le_bytes()[..], &99_u64.to_le_bytes()].concat();
        assert_eq!(serve(&balloon, QueueRole::Statistics, &bytes), (None, Outcome::Keep));
        let sample = balloon.statistics().unwrap();
        assert_eq!(sample.values.free_bytes, Some(99));
        assert!(sample.age() < Duration::from_secs(600));
        // What tells nothing leaves the last sample.
        serve(&balloon, QueueRole::Statistics, &[1; 9]);
        assert_eq!(balloon.statistics().unwrap().at, sample.at);
    }

    #[test]
    fn hints_are_handed_on_during_a_round_and_done_follows() {
        let balloon = everything();
        assert_eq!(balloon.start_hinting(), Err(HintingError::NotAcked));
        balloon.set_acked_features(HINTS | STATISTICS);
        assert_eq!(serve(&balloon, QueueRole::Hinting, &[]).0, None);
        balloon.start_hinting().unwrap();
        assert_eq!(balloon.config().free_page_hint_cmd_id(), 2);
        assert!(!balloon.take_config_changed(), "the caller knows");
        serve(&balloon, QueueRole::Hinting, &2_u32.to_le_bytes());
        assert_eq!(serve(&balloon, QueueRole::Hinting, &[]), (page(BUFFER), Outcome::Return));
        serve(&balloon, QueueRole::Hinting, &0_u32.to_le_bytes());
        assert!(balloon.take_config_changed());
        assert!(!balloon.take_config_changed());
        assert_eq!(balloon.config().free_page_hint_cmd_id(), 1);
        let status = balloon.hinting();
        assert_eq!((status.state, status.ranges), (HintingState::Done, 1));
        assert_eq!(status.bytes, 0x1000);
        assert_eq!(balloon.stop_hinting(), Err(HintingError::NotRunning));
        let plain = Balloon::new(DeviceOptions::default(), Arc::default());
        assert_eq!(plain.start_hinting(), Err(HintingError::NotOffered));
    }

    #[test]
    fn stopping_in_the_middle_of_a_discard_keeps_the_pages_from_the_driver_until_its_end() {
        let balloon = everything();
        balloon.set_acked_features(HINTS | STATISTICS);
        balloon.start_hinting().unwrap();
        serve(&balloon, QueueRole::Hinting, &2_u32.to_le_bytes());
        let memory = memory();
        write(&memory, TABLE, &[(BUFFER, 0x1000, WRITE, 0)]);
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        balloon.serve(QueueRole::Hinting, head, &memory, |_| {
            // What another thread does meanwhile; it must not wait.
            balloon.stop_hinting().unwrap();
            assert_eq!(balloon.config().free_page_hint_cmd_id(), 0);
        });
        assert_eq!(balloon.config().free_page_hint_cmd_id(), 1);
        assert!(balloon.take_config_changed());
    }

    #[test]
    fn the_target_is_what_the_driver_reads_and_actual_what_it_writes() {
        let options = DeviceOptions { target_bytes: 1 << 20, ..DeviceOptions::default() };
        let balloon = Balloon::new(options, Arc::default());
        assert_eq!(balloon.config().read(0, 4), 256_u32.to_le_bytes());
        assert_eq!(balloon.set_target(1), Err(TargetError::NotPages(1)));
        assert_eq!(balloon.target_bytes(), 1 << 20);
        balloon.set_target(2 << 20).unwrap();
        assert_eq!(balloon.config().num_pages(), 512);
        assert_eq!(balloon.actual_bytes(), 0);
        balloon.config().write(4, &300_u32.to_le_bytes());
        assert_eq!(balloon.actual_bytes(), 300 * 4096);
        assert_eq!(balloon.target_bytes(), 2 << 20);
    }

    #[test]
    fn a_new_driver_finds_what_the_operator_set_and_nothing_of_the_last_one() {
        let balloon = everything();
        let interval = Duration::from_secs(5);
        balloon.set_target(1 << 20).unwrap();
        balloon.set_statistics_interval(interval).unwrap();
        balloon.set_acked_features(STATISTICS | HINTS | REPORTING | POISON);
        balloon.config().write(0, &[7; 16]);
        balloon.start_hinting().unwrap();
        serve(&balloon, QueueRole::Statistics, &[4, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(balloon.statistics().is_some());
        balloon.reset();
        assert_eq!(balloon.acked_features(), None);
        assert_eq!((balloon.target_bytes(), balloon.statistics_interval()), (1 << 20, interval));
        let config = *balloon.config();
        assert_eq!((config.actual(), config.poison_val()), (0, 0));
        assert_eq!(config.free_page_hint_cmd_id(), 0);
        assert!(balloon.statistics().is_none());
        assert_eq!(balloon.hinting().state, HintingState::Stopped);
    }

    #[test]
    fn an_interval_needs_statistics() {
        let plain = Balloon::new(DeviceOptions::default(), Arc::default());
        let second = Duration::from_secs(1);
        assert_eq!(plain.set_statistics_interval(second), Err(IntervalError::NotOffered));
        assert_eq!(plain.statistics_interval(), Duration::ZERO);
    }

    #[test]
    fn a_device_goes_on_elsewhere_as_it_was() {
        let here = everything();
        here.set_target(3 << 20).unwrap();
        here.set_statistics_interval(Duration::from_secs(2)).unwrap();
        here.config().write(4, &[1; 12]);
        here.set_acked_features(STATISTICS | HINTS | REPORTING | POISON | 1 << 32);
        let saved = here.save();
        let json = serde_json::to_string(&saved).unwrap();
        let there = everything();
        there.restore(serde_json::from_str(&json).unwrap()).unwrap();
        assert_eq!(there.save(), saved);
        assert_eq!(*there.config(), *here.config());
        assert!(!there.take_config_changed());

        // A round cannot go on elsewhere: the driver is to have its pages back.
        here.start_hinting().unwrap();
        there.restore(here.save()).unwrap();
        assert_eq!(there.config().free_page_hint_cmd_id(), 1);
        assert!(there.take_config_changed());
        there.start_hinting().unwrap();
        assert_eq!(there.config().free_page_hint_cmd_id(), 3);
    }

    #[test]
    fn a_device_that_offers_less_does_not_go_on() {
        let less = Balloon::new(DeviceOptions::default(), Arc::default());
        let before = less.save();
        let here = everything();
        here.set_acked_features(STATISTICS | REPORTING);
        let missing = STATISTICS;
        let error = RestoreError::NotOffered { acked: STATISTICS | REPORTING, missing };
        assert_eq!(less.restore(here.save()), Err(error));
        let interval = Duration::from_nanos(1);
        let saved = SavedBalloon { statistics_interval: interval, ..here.save() };
        assert!(matches!(here.restore(saved), Err(RestoreError::Interval(_))));
        assert_eq!(less.save(), before);
        // What the driver did not ack it does not miss.
        here.set_acked_features(REPORTING);
        less.restore(SavedBalloon { statistics_interval: interval, ..here.save() }).unwrap();
        assert_eq!(less.statistics_interval(), Duration::ZERO);
    }

    #[test]
    fn a_chain_of_any_queue_may_break_off() {
        let balloon = everything();
        balloon.set_acked_features(u64::MAX);
        balloon.start_hinting().unwrap();
        let memory = memory();
        write(&memory, TABLE, &[(BUFFER, 0x1000, WRITE | NEXT, 9)]);
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        for queue in 0..features::NUM_QUEUES {
            let role = balloon.role(queue).unwrap();
            let mut bytes = 0;
            balloon.serve(role, head, &memory, |ranges| {
                bytes = ranges.iter().map(GuestRange::len).sum();
            });
            assert_eq!(bytes, 0, "{role:?}");
        }
    }
}
