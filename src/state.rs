// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What outlives a connection: the device as the guest left it and the operator set it, so that a
//! frontend that comes back goes on where it was.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::SystemTime;

use log::warn;
use vmm_sys_util::eventfd::EventFd;

use crate::device::{Balloon, DeviceOptions, DriverState, Sample};
use crate::discard::Survey;
use crate::discard::{Backing, Cause, GuestRange, Inhibit, MemoryOptions, RegionTable, Shown};
use crate::hand_over::{HandOverError, Held, SavedPin, Snapshot};
use crate::lock::lock;
use crate::logging::rate_limit::LogLimit;
use crate::metrics::Counters;
use crate::vhost_user::{Refused, Rings, Transfers, WindUp};
use crate::wake::{Wake, Wakes};

/// What the daemon may ask of a connected frontend, from any thread.
pub(crate) trait Frontend: Send + Sync {
    /// Tells the driver that the configuration space has changed.
    ///
    /// # Errors
    /// If the frontend has no channel for it, or it broke.
    fn config_changed(&self) -> io::Result<()>;

    /// Asks the driver for new statistics.
    ///
    /// # Errors
    /// If the queue's thread cannot be woken.
    fn poll_statistics(&self) -> io::Result<()>;
}

/// What became of a change that the driver is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The driver has been told.
    Now,
    /// No driver runs. One that begins reads the change by itself, one that goes on is told then.
    WhenADriverRuns,
}

/// One device and everything that is known of it, shared by the connection of the moment, the
/// control socket and the timers.
pub(crate) struct State {
    /// What the guest sees.
    pub balloon: Balloon,
    /// What may be discarded at all.
    pub memory: MemoryOptions,
    /// What must not be discarded now.
    pub inhibit: Arc<Inhibit>,
    /// What happened since the start, or since the last reset of the counters.
    pub counters: Arc<Counters>,
    /// Which queues run.
    pub rings: Arc<Rings>,
    /// The device's state on its way to or from another daemon.
    pub(crate) transfers: Transfers,
    /// The session that is ending, for the watchdog.
    pub(crate) wind_up: WindUp,
    frontend: Mutex<Option<Arc<dyn Frontend>>>,
    /// Why the device of this frontend, or of the last one, is not served.
    refused: Mutex<Option<Refused>>,
    /// How many other frontends wait.
    waiting: AtomicUsize,
    interval_changed: OnceLock<EventFd>,
    change_owed: OnceLock<Arc<Wake>>,
    sessions: OnceLock<Arc<Wake>>,
    /// [`Rings::version`] when the frontend connected.
    rings_at_connect: AtomicU64,
    no_driver: LogLimit,
    /// Plain data, so that the main thread never holds a file of a guest.
    backings: Mutex<Option<Vec<Shown>>>,
    /// How much of the guest's memory is there.
    pub(crate) survey: Survey,
    /// Signalled when an answer that a control client waits for may be ready.
    pub(crate) operators: Arc<Wakes>,
    /// What the next daemon goes on from; none if nothing starts one.
    held: OnceLock<Arc<Held>>,
    resuming: AtomicBool,
    started: SystemTime,
    vm_name: OnceLock<String>,
    #[cfg(fuzzing)]
    pub(crate) probe: crate::vhost_user::fuzzing::Probe,
}

impl State {
    /// A device that no guest has touched.
    pub(crate) fn new(device: DeviceOptions, memory: MemoryOptions) -> Self {
        let counters = Arc::<Counters>::default();
        let operators = Arc::<Wakes>::default();
        Self {
            balloon: Balloon::new(device, Arc::clone(&counters)),
            memory,
            inhibit: Arc::new(Inhibit::new(Arc::clone(&operators))),
            counters,
            rings: Arc::default(),
            transfers: Transfers::default(),
            wind_up: WindUp::default(),
            frontend: Mutex::default(),
            refused: Mutex::default(),
            waiting: AtomicUsize::new(0),
            interval_changed: OnceLock::new(),
            change_owed: OnceLock::new(),
            sessions: OnceLock::new(),
            rings_at_connect: AtomicU64::new(0),
            no_driver: LogLimit::default(),
            backings: Mutex::default(),
            survey: Survey::new(Arc::clone(&operators)),
            operators,
            held: OnceLock::new(),
            resuming: AtomicBool::new(false),
            started: SystemTime::now(),
            vm_name: OnceLock::new(),
            #[cfg(fuzzing)]
            probe: Default::default(),
        }
    }

    /// When this device was made.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Names the VM, once.
    pub(crate) fn name_vm(&self, name: &str) {
        let _ = self.vm_name.set(name.to_owned());
    }

    /// The name of the VM, if the operator gave it one.
    pub(crate) fn vm_name(&self) -> Option<&str> {
        self.vm_name.get().map(String::as_str)
    }

    /// Goes on from what the daemon before this one has left.
    ///
    /// # Errors
    /// Why this device cannot.
    pub(crate) fn restore(&self, snapshot: &Snapshot) -> Result<(), HandOverError> {
        let causes = [(snapshot.paused, Cause::Operator), (snapshot.parked, Cause::Parked)];
        for (_, cause) in causes.into_iter().filter(|(holds, _)| *holds) {
            // Nothing is under way yet.
            let _ = self.inhibit.forbid(cause);
        }
        for pin in &snapshot.pins {
            let range = GuestRange::new(pin.start, pin.len).map_err(|_| HandOverError::Range)?;
            // A count that is damaged may be any number.
            if pin.count > 0 {
                let _ = self.inhibit.pin_often(range, pin.count).map_err(HandOverError::Pin)?;
            }
        }
        self.balloon.restore(snapshot.balloon)?;
        self.balloon.force_target(snapshot.forced);
        Ok(())
    }

    /// Keeps the device's state for the next daemon from now on.
    pub(crate) fn hold(&self, held: Arc<Held>) {
        // There is one store.
        let _ = self.held.set(held);
        self.keep();
    }

    /// What the next daemon goes on from, if one is started.
    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.get().map(Arc::as_ref)
    }

    /// The device, or what the operator has set of it, may have changed.
    pub(crate) fn keep(&self) {
        if let Some(held) = self.held() {
            held.keep(|| self.snapshot());
        }
    }

    fn snapshot(&self) -> Snapshot {
        let pins = self.inhibit.pins().into_iter().map(|pin| SavedPin {
            start: pin.range.start(),
            len: pin.range.len(),
            count: pin.count,
        });
        Snapshot {
            balloon: self.balloon.save(),
            forced: self.balloon.is_target_forced(),
            paused: self.inhibit.holds(Cause::Operator),
            parked: self.inhibit.holds(Cause::Parked),
            pins: pins.collect(),
        }
    }

    /// The frontend of the daemon before this one is being told what was said, or has been.
    pub(crate) fn set_resuming(&self, resuming: bool) {
        self.resuming.store(resuming, Ordering::Release);
    }

    /// Whether a frontend is served.
    pub(crate) fn is_connected(&self) -> bool {
        self.frontend().is_some() && !self.resuming.load(Ordering::Acquire)
    }

    /// The frontend that is connected, if there is one.
    pub(crate) fn frontend(&self) -> Option<Arc<dyn Frontend>> {
        lock(&self.frontend).clone()
    }

    /// A frontend has connected, or has gone. Nothing is known of its memory yet, or any more.
    pub(crate) fn set_frontend(&self, frontend: Option<Arc<dyn Frontend>>) {
        match frontend.is_some() {
            true => {
                self.balloon.begin_session();
                self.rings_at_connect.store(self.rings.version(), Ordering::Relaxed);
            }
            false => {
                self.balloon.set_memory_bytes(0);
                self.counters.set_collecting(0);
            }
        }
        self.survey.set_regions(Weak::new());
        *lock(&self.backings) = None;
        *lock(&self.frontend) = frontend;
        if let Some(wake) = self.sessions.get()
            && let Err(error) = wake.signal()
        {
            warn!("cannot signal a session: {error}");
        }
    }

    /// Why the device of the frontend that is connected, or of the last one, is not served.
    pub(crate) fn refused(&self) -> Option<Refused> {
        lock(&self.refused).clone()
    }

    pub(crate) fn set_refused(&self, refused: Option<&Refused>) {
        let mut known = lock(&self.refused);
        if known.as_ref() != refused {
            *known = refused.cloned();
        }
    }

    /// How many frontends wait to be served: they have sent a message.
    pub(crate) fn waiting_connections(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn set_waiting(&self, frontends: usize) {
        self.waiting.store(frontends, Ordering::Relaxed);
    }

    /// How far the driver has come.
    pub(crate) fn driver(&self) -> DriverState {
        self.balloon.driver(self.frontend().is_some(), self.rings.running())
    }

    /// Whether there is a driver in this session. What is known of one before it is not shown.
    fn has_driver(&self) -> bool {
        self.frontend().is_some() && self.balloon.session_features().is_some()
    }

    /// How many bytes the driver says are in the balloon; `None` if there is no driver, or it has
    /// not said so to this daemon.
    pub(crate) fn actual_bytes(&self) -> Option<u64> {
        self.balloon.actual_bytes().filter(|_| self.has_driver())
    }

    /// The statistics that the driver sent last; `None` if there is no driver.
    pub(crate) fn statistics(&self) -> Option<Sample> {
        self.balloon.statistics().filter(|_| self.has_driver())
    }

    /// Tells the driver of a change of the configuration space that it has not been told of, if
    /// there is one. Where no queue runs, or that fails, it stays due.
    ///
    /// # Errors
    /// If there is no frontend, or what [`Frontend::config_changed`] says.
    pub(crate) fn tell_driver(&self) -> io::Result<Told> {
        if !self.rings.any_running() {
            return Ok(Told::WhenADriverRuns);
        }
        if !self.balloon.take_config_changed() {
            return Ok(Told::Now);
        }
        let told = match self.frontend() {
            Some(frontend) => frontend.config_changed(),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if told.is_err() {
            self.balloon.owe_config_change();
        }
        told.map(|()| Told::Now)
    }

    /// The configuration space has changed: tells the driver, or has it told when one runs.
    ///
    /// # Errors
    /// As [`State::tell_driver`].
    pub(crate) fn announce_change(&self) -> io::Result<Told> {
        self.balloon.owe_config_change();
        self.tell_driver()
    }

    /// Has the driver told of what is due a little later, by another thread.
    pub(crate) fn tell_driver_later(&self) {
        if let Some(wake) = self.change_owed.get()
            && let Err(error) = wake.signal()
        {
            warn!("cannot signal a change of the configuration: {error}");
        }
    }

    /// Signals `wake` from now on whenever a frontend connects or goes.
    pub(crate) fn on_session(&self, wake: Arc<Wake>) {
        // One thread watches sessions.
        let _ = self.sessions.set(wake);
    }

    /// Adds an event that the announcer waits for.
    pub(crate) fn on_change_owed(&self, wake: Arc<Wake>) {
        // There is one such thread.
        let _ = self.change_owed.set(wake);
    }

    /// Says so if a session ends in which no driver ran: it looked like one that works.
    pub(crate) fn session_ends(&self) {
        let state = self.driver();
        if self.rings.version() == self.rings_at_connect.load(Ordering::Relaxed)
            && let Some(hint) = state.hint(self.balloon.options().reporting)
        {
            self.no_driver.run(|| warn!("no driver ran in this session: {hint}"));
        }
    }

    /// Says so if no driver reports some time after a VMM has connected.
    pub(crate) fn session_lasts(&self) {
        let state = self.driver();
        let waits = matches!(state, DriverState::NoDriver | DriverState::NotReporting);
        if let Some(hint) = state.hint(self.balloon.options().reporting).filter(|_| waits) {
            self.no_driver.run(|| warn!("a VMM is connected and nothing is reported: {hint}"));
        }
    }

    /// A queue has started: a driver runs.
    pub(crate) fn driver_starts(&self) {
        self.balloon.queue_runs();
    }

    /// Adds an event that the timer of the statistics waits for.
    pub(crate) fn on_interval_changed(&self, event: EventFd) {
        // There is one such timer.
        let _ = self.interval_changed.set(event);
    }

    /// The interval of the statistics was changed by a thread other than the timer's.
    ///
    /// # Errors
    /// If the event cannot be signalled.
    pub(crate) fn interval_changed(&self) -> io::Result<()> {
        self.interval_changed.get().map_or(Ok(()), |event| event.write(1))
    }

    /// What backs the guest's memory now, by address; `None` if there is none.
    pub(crate) fn backings(&self) -> Option<Vec<Backing>> {
        let shown = lock(&self.backings);
        Some(shown.as_ref()?.iter().map(Shown::now).collect())
    }

    /// The frontend has sent this table of its memory.
    pub(crate) fn set_regions(&self, regions: &Arc<RegionTable>) {
        self.survey.set_regions(Arc::downgrade(regions));
        let backings = Some(regions.shown());
        *lock(&self.backings) = backings;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand_over::SavedPin;
    use std::sync::atomic::AtomicUsize;
    use virtio_queue::{Queue, QueueT};

    /// A frontend that can be told as often as this says, and not more often.
    struct Patient(AtomicUsize);

    impl Frontend for Patient {
        fn config_changed(&self) -> io::Result<()> {
            let told = self
                .0
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            told.map(drop).map_err(|_| io::ErrorKind::WouldBlock.into())
        }

        fn poll_statistics(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_change_is_due_until_the_driver_was_told() {
        let state = State::new(DeviceOptions::default(), MemoryOptions::default());
        let later = |told: io::Result<Told>| told.unwrap() == Told::WhenADriverRuns;
        assert!(later(state.announce_change()), "without a driver there is nobody to owe it to");
        state.balloon.set_acked_features(0);
        let frontend = Arc::new(Patient(AtomicUsize::new(1)));
        state.set_frontend(Some(Arc::clone(&frontend) as Arc<dyn Frontend>));
        // No queue runs: QEMU would die of it.
        assert!(later(state.announce_change()));
        assert_eq!(frontend.0.load(Ordering::Relaxed), 1);

        state.rings.note(0, Some(&Queue::new(2).unwrap()));
        assert_eq!(state.tell_driver().unwrap(), Told::Now);
        assert_eq!(frontend.0.load(Ordering::Relaxed), 0);
        assert_eq!(state.tell_driver().unwrap(), Told::Now, "told once, and not again");
        assert_eq!(state.announce_change().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        frontend.0.store(2, Ordering::Relaxed);
        state.tell_driver().unwrap();
        assert_eq!(frontend.0.load(Ordering::Relaxed), 1, "what failed is told after all");
        // A new driver reads everything by itself.
        state.balloon.owe_config_change();
        state.balloon.reset();
        state.tell_driver().unwrap();
        assert_eq!(frontend.0.load(Ordering::Relaxed), 1);
    }

    /// Found by fuzzing: a pin was taken as often as it was held, up to 4294967295 times.
    #[test]
    fn snapshot_with_a_huge_pin_count_is_restored() {
        let state = State::new(DeviceOptions::default(), MemoryOptions::default());
        let pin = SavedPin { start: 4096, len: 8192, count: u32::MAX };
        let snapshot = Snapshot { pins: vec![pin], ..state.snapshot() };
        state.restore(&snapshot).unwrap();
        assert_eq!(state.snapshot().pins, [pin]);
        // No pin is held as often as twice that.
        let twice = Snapshot { pins: vec![pin, pin], ..snapshot };
        let error = State::new(DeviceOptions::default(), MemoryOptions::default()).restore(&twice);
        assert!(matches!(error, Err(HandOverError::Pin(_))), "{error:?}");
    }
}
