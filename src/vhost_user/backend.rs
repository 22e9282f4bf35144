// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user backend: translates the framework's calls for the device and the memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use log::{debug, info, warn};
use rustix::process::Pid;
use rustix::thread::gettid;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::device::features::{MAX_QUEUE_SIZE, NUM_QUEUES};
use crate::device::{Action, Contents, Outcome, QueueRole};
use crate::discard::{
    Cause, DirtyLog, Fallocate, GuestMemory, LogBitmap, Reclaimer, Snapshot, leave_out_of_dumps,
};
use crate::hand_over::Held;
use crate::lock::lock;
use crate::logging::report;
use crate::state::State;
use crate::vhost_user::device_state::{self, StateError, Transfer};
use crate::vhost_user::frontend_channel::Link;
use crate::vhost_user::vring::{Pass, RingError, RingLog, Taken, Vring};
use crate::wake::Wake;

/// `VHOST_F_LOG_ALL`: the frontend wants to know which pages this daemon writes.
///
/// It belongs to vhost-user and not to the device. It is offered to every frontend, since one that
/// migrates its guest refuses to where the backend does not know it. QEMU's generic device hands it
/// on to the driver; Linux acks no bit that its driver does not list. Our side of the device never
/// sees it.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// What the worker is told when statistics are to be asked for. The framework has taken the numbers
/// up to that of the queues for itself.
pub(crate) const STATISTICS_WANTED: u16 = 6;
const _: () = assert!(STATISTICS_WANTED as usize > NUM_QUEUES);

/// Tells the worker to attach the queues ([`BalloonBackend::attach`]).
const ATTACH: u16 = STATISTICS_WANTED + 1;

/// The balloon device, for one frontend connection.
pub(crate) struct BalloonBackend {
    state: Arc<State>,
    reclaimer: Reclaimer<Fallocate>,
    dirty: Mutex<DirtyLog>,
    link: Arc<Link>,
    stop: Arc<Wake>,
    transfer: Mutex<Option<Transfer>>,
    ring_log: RingLog,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
    exit_fd: OnceLock<RawFd>,
    attach: OnceLock<Attach>,
    worker: OnceLock<Pid>,
}

/// What the worker attaches the queues to.
struct Attach {
    epoll: Arc<OwnedFd>,
    wanted: Wake,
}

/// Ends a connection, from any thread.
pub(crate) struct StopHandle {
    stopping: Arc<AtomicBool>,
    wake: Arc<Wake>,
}

impl StopHandle {
    /// Lets everything that is under way for the connection end soon: a discard stops after its
    /// present call, a transfer of the device's state and the relay at once. Waits for none of it.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Err(error) = self.wake.signal() {
            warn!("cannot signal the end of a session: {error}");
        }
    }
}

impl BalloonBackend {
    /// A connection to the device with this state. `stop` is signalled when it is to end.
    ///
    /// # Errors
    /// Where a descriptor cannot be created.
    pub(crate) fn new(state: Arc<State>, link: Arc<Link>, stop: Arc<Wake>) -> io::Result<Self> {
        let (inhibit, counters) = (Arc::clone(&state.inhibit), Arc::clone(&state.counters));
        // The framework takes "none" for a worker that never exits, and would wait for it without end.
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self {
            reclaimer: Reclaimer::new(Fallocate, state.memory, inhibit, counters)
                .keeping(Arc::clone(&state.rings) as _),
            state,
            dirty: Mutex::default(),
            link,
            stop,
            transfer: Mutex::new(None),
            ring_log: RingLog::default(),
            exit: Mutex::new(Some(exit)),
            exit_fd: OnceLock::new(),
            attach: OnceLock::new(),
            worker: OnceLock::new(),
        })
    }

    /// Has the framework's `worker` attach its queues to [`State::rings`]. Only the worker is given
    /// the queues. The frontend's messages must wait for [`BalloonBackend::worker_thread`].
    ///
    /// # Errors
    /// Where a descriptor cannot be created or watched.
    pub(crate) fn attach(&self, worker: &VringEpollHandler<Arc<Self>>) -> io::Result<()> {
        // SAFETY: the worker keeps its epoll descriptor open, and is borrowed.
        let epoll = unsafe { BorrowedFd::borrow_raw(worker.as_raw_fd()) };
        let epoll = Arc::new(epoll.try_clone_to_owned()?);
        #[cfg(fuzzing)]
        self.state.probe.watch(worker);
        let wanted = Wake::new()?;
        wanted.signal()?;
        let attach = self.attach.get_or_init(|| Attach { epoll, wanted });
        let fd = attach.wanted.as_fd().as_raw_fd();
        worker.register_listener(fd, EventSet::IN, u64::from(ATTACH))
    }

    /// Waits until the worker has attached its queues, which it does as soon as it runs, and
    /// returns its thread id.
    pub(crate) fn worker_thread(&self) -> Pid {
        *self.worker.wait()
    }

    fn attach_queues(&self, vrings: &[Vring]) {
        let Some(attach) = self.attach.get() else { return };
        attach.wanted.clear();
        for (index, vring) in vrings.iter().enumerate() {
            vring.attach(index, &self.state.rings, &attach.epoll);
        }
        let _ = self.worker.set(gettid());
        crate::sandbox::worker::enter();
    }

    /// What ends this connection, and owns nothing of it.
    pub(crate) fn stop_handle(&self) -> StopHandle {
        StopHandle { stopping: self.reclaimer.stopping(), wake: Arc::clone(&self.stop) }
    }

    /// How much guest memory is mapped.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.reclaimer.snapshot().as_ref().iter().map(GuestMemoryRegion::len).sum()
    }

    /// The frontend logs dirty pages from now on, or does not.
    ///
    /// A log means a live migration, and nothing is discarded during one. A page that is discarded
    /// after its contents were sent reads as zeros here and as what it held there; and if it were
    /// marked dirty for that, the frontend would read it, which fills the hole again.
    fn follow_migration(&self, logs: bool) {
        let inhibit = &self.state.inhibit;
        if inhibit.holds(Cause::Migration) != logs {
            info!("dirty logging {}", if logs { "on, discarding pauses" } else { "off" });
        }
        // Once the frontend has its answer nothing is discarded. This thread is the frontend's own,
        // and waits for no more than the call under way.
        match logs {
            true => inhibit.wait(inhibit.forbid(Cause::Migration)),
            false => inhibit.lift(Cause::Migration),
        }
        lock(&self.dirty).set_logging(logs);
    }

    /// Returns the buffers that the driver has given for its statistics, so that it fills them
    /// again. One whose kick is still to be handled is taken first: the request would be lost.
    fn ask_for_statistics(&self, vrings: &[Vring]) {
        self.link.statistics_wanted();
        let is_asked = |index| self.state.balloon.role(index) == Some(QueueRole::Statistics);
        for (index, vring) in vrings.iter().enumerate().filter(|(index, _)| is_asked(*index)) {
            let served = self.serve_queue(index, vring);
            let asked = served.and_then(|()| vring.return_kept(|| self.reclaimer.snapshot()));
            let _ = asked.inspect_err(|error| self.ring_log.report(index, error));
        }
    }

    /// Forgets what an earlier driver said if the queue was started by a driver that begins.
    fn meet_driver(&self, index: usize, vring: &Vring) {
        if vring.take_fresh() {
            self.state.balloon.queue_is_fresh(index, vring.was_untouched());
        }
    }

    /// Serves each chain on the available ring.
    fn serve_queue(&self, index: usize, vring: &Vring) -> Result<(), RingError> {
        let (mut pass, going) = (Pass::default(), || !self.reclaimer.is_stopping());
        while let Some(taken) = vring.take(&mut pass, going, || self.reclaimer.snapshot())? {
            let outcome = self.serve_chain(index, vring, &taken);
            taken.finish(outcome)?;
        }
        Ok(())
    }

    /// Serves one chain: collects what it names, does what it asks for, ends it.
    fn serve_chain(
        &self,
        index: usize,
        vring: &Vring,
        taken: &Taken<'_, Snapshot<'_, Fallocate>>,
    ) -> Outcome {
        let (begin, balloon) = (Instant::now(), &self.state.balloon);
        // For each chain, since between two of them another driver may have set the queue up: until
        // this one is returned the queue cannot be stopped.
        self.meet_driver(index, vring);
        let Some(role) = balloon.role(index) else { return Outcome::Return };
        let snapshot = &taken.snapshot;
        let mut request = balloon.collect(role, taken.head, snapshot.as_ref());
        let Contents { ranges, zeroed, claim } = &mut *request.contents;
        let named = ranges.len();
        let going = || !vring.control_waits();
        let done = match request.action {
            Action::Discard => Some(snapshot.discard_while(ranges, zeroed, going)),
            Action::Hold => Some(snapshot.inflate_while(ranges, zeroed, going)),
            Action::Release => {
                snapshot.deflate(Some(ranges));
                None
            }
            Action::ReleaseAll => {
                snapshot.deflate(None);
                None
            }
            Action::Nothing => None,
        };
        if let Some(done) = done {
            debug!(
                "queue {index}: {named} ranges named, {} bytes discarded in {} calls",
                done.bytes, done.calls
            );
        }
        if self.reclaimer.is_stopping() && self.state.held().is_some_and(Held::is_leaving) {
            // What is left of it is the next daemon's, which takes the chain again.
            return Outcome::Keep;
        }
        snapshot.will_write(claim.buffers(), zeroed);
        let outcome = balloon.finish(request, snapshot.as_ref());
        self.state.counters.served(begin.elapsed());
        outcome
    }

    fn start_transfer(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<(), StateError> {
        // The only phase that there is (vhost-user protocol, "Device state transfer parameters").
        let VhostTransferStatePhase::STOPPED = phase;
        let stop = Arc::clone(&self.stop);
        // One that is still under way is broken off.
        drop(lock(&self.transfer).take());
        let transfer = match direction {
            VhostTransferStateDirection::SAVE => {
                let state = device_state::encode(&self.state.balloon.save())?;
                Transfer::save(&self.state.transfers, file, state, stop)?
            }
            VhostTransferStateDirection::LOAD => Transfer::load(&self.state.transfers, file, stop)?,
        };
        *lock(&self.transfer) = Some(transfer);
        Ok(())
    }

    fn finish_transfer(&self) -> Result<(), StateError> {
        let transfer = lock(&self.transfer).take();
        if let Some(state) = transfer.ok_or(StateError::NoTransfer)?.finish()? {
            self.state.balloon.restore(device_state::decode(&state)?)?;
            info!("took over the state of a device that migrated here");
            self.state.keep();
            self.state.tell_driver_later();
            if let Err(error) = self.state.interval_changed() {
                warn!("cannot signal a new interval of the statistics: {error}");
            }
        }
        Ok(())
    }
}

/// The framework keeps what it is told to itself.
fn told(result: Result<(), StateError>) -> io::Result<()> {
    result.map_err(|error| {
        report("cannot move the device's state", &error);
        io::Error::other(error)
    })
}

/// Closes the eventfd that told the worker to exit.
///
/// vhost-user-backend 0.24 keeps it as a bare number in its epoll set and never closes it, which
/// costs a descriptor a connection. The test that counts descriptors over many connections guards
/// this against a version that mends it.
impl Drop for BalloonBackend {
    fn drop(&mut self) {
        if let Some(fd) = self.exit_fd.take() {
            // SAFETY: the framework gave up ownership with `into_raw_fd`. Whatever of it used the
            // number held this backend, too, and is gone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

impl VhostUserBackend for BalloonBackend {
    type Bitmap = LogBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        self.state.balloon.offered() | LOG_ALL
    }

    fn acked_features(&self, features: u64) {
        self.follow_migration(features & LOG_ALL != 0);
        self.state.balloon.set_acked_features(features & !LOG_ALL);
        self.state.keep();
    }

    /// `CONFIG` is a must: without it QEMU and cloud-hypervisor tell the guest to give up all its
    /// memory.
    ///
    /// Not offered: `INFLIGHT_SHMFD`, because chains are served in order, so that the used index
    /// alone says where to go on after a crash; `PAGEFAULT`, because under postcopy a page that is
    /// still to come is a hole like any other, so that frontends refuse postcopy by themselves.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::DEVICE_STATE
    }

    /// The guest has reset the device. Its queues are disabled; a migration goes on.
    fn reset_device(&self) {
        self.state.balloon.reset();
        self.state.keep();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.state.balloon.read_config(offset, size, self.state.rings.any_running());
        self.state.keep();
        config
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.state.balloon.write_config(offset, bytes, self.state.rings.any_running());
        self.state.keep();
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemory>) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        debug!("guest memory: {} regions", memory.num_regions());
        if let Err(error) = leave_out_of_dumps(&memory) {
            warn!("guest memory would be in a core dump: {error}");
        }
        lock(&self.dirty).set_memory(Arc::clone(&memory)).map_err(io::Error::other)?;
        let regions = self.reclaimer.set_memory(memory).map_err(io::Error::other)?;
        self.state.set_regions(&regions);
        self.state.balloon.set_memory_bytes(regions.bytes());
        Ok(())
    }

    /// The framework joins its worker when a connection ends, and wakes it with this.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        lock(&self.exit).take().inspect(|(consumer, _)| {
            // It is asked for once: there is one worker.
            let _ = self.exit_fd.set(consumer.as_raw_fd());
        })
    }

    /// # Errors
    /// Never: an error from here ends the framework's worker in silence.
    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if event == STATISTICS_WANTED {
            self.ask_for_statistics(vrings);
            return Ok(());
        }
        if event == ATTACH {
            self.attach_queues(vrings);
            return Ok(());
        }
        #[cfg(fuzzing)]
        if event == crate::vhost_user::fuzzing::Probe::EVENT {
            self.state.probe.answer();
            return Ok(());
        }
        let index = usize::from(event);
        let balloon = &self.state.balloon;
        let Some(vring) = vrings.get(index) else { return Ok(()) };
        // Before its first chain is served, in which it may say more.
        self.meet_driver(index, vring);
        if self.state.rings.any_running() {
            balloon.queue_runs();
        }
        if let Err(error) = self.serve_queue(index, vring) {
            self.ring_log.report(index, &error);
        }
        // Another thread tells the driver: here a channel that is full would keep chains waiting.
        if balloon.take_changed_by_chain() {
            self.state.keep();
            self.state.tell_driver_later();
        }
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        told(self.start_transfer(direction, phase, file)).map(|()| None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        told(self.finish_transfer())
    }
}
