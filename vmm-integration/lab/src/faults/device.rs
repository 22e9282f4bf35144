// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A balloon device that breaks its promises.
//!
//! It serves a real vhost-user socket, so that any guest can attach to it. It discards the memory of a
//! chain with one call for each descriptor, and returns the chain as its plan says.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringMutex, VringState, VringT,
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::chain::Chain;
use super::gate::Gate;
use super::plan::{FaultKind, FaultPlan};
use guest_driver::virtio::feature as ring_feature;

/// Inflate, deflate, and three that may be reporting: see `features::role` of the daemon.
const QUEUES: usize = 5;
const FIRST_REPORTING: usize = 2;
const QUEUE_SIZE: usize = 1024;
const CONFIG_BYTES: usize = 16;
/// A head that no ring has.
const NO_HEAD: u32 = 0xffff;
/// Bytes that a returned chain is said to hold by [`FaultKind::UsedLength`].
const USED_BYTES: u32 = 64 << 20;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Head = DescriptorChain<Arc<GuestMemoryMmap>>;

/// What a faulty device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Chains of the reporting queue that it has taken, with those that were skipped.
    pub chains: u64,
    /// Chains that a fault happened to.
    pub faults: u64,
    /// Bytes that were given back to the host.
    pub discarded_bytes: u64,
}

/// Of so many chains the device remembers what was in them.
const MOST_CHAINS: usize = 100_000;

/// A faulty device that listens on a socket of its own, for one frontend after the other. Dropping
/// it hangs up.
pub struct FaultyDevice {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    folder: TempDir,
}

struct Shared {
    plan: FaultPlan,
    chains: AtomicU64,
    faults: AtomicU64,
    log: Mutex<Vec<Chain>>,
    gate: Gate,
    discarded_bytes: AtomicU64,
    stop: AtomicBool,
    session: Mutex<Option<ShutdownHandle>>,
}

impl FaultyDevice {
    /// Starts it. Faults of the plan that are the daemon's ([`super::plan::Injector::Daemon`])
    /// have no effect.
    ///
    /// # Errors
    /// Where it has no socket or no thread.
    pub fn start(plan: FaultPlan) -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("faulty-device-").tempdir().context("a temp folder")?;
        let listener = Listener::new(socket_in(folder.path()), true).context("listening")?;
        let shared = Arc::new(Shared {
            plan,
            chains: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            log: Mutex::default(),
            gate: Gate::default(),
            discarded_bytes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            session: Mutex::default(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("faulty-device".into())
                .spawn(move || serve(&shared, listener))
                .context("starting the device's thread")?
        };
        Ok(Self { shared, thread: Some(thread), folder })
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    /// The chains since this was asked last, at most some hundred thousand.
    pub fn take_chains(&self) -> Vec<Chain> {
        std::mem::take(&mut *lock(&self.shared.log))
    }

    /// Counts so many chains as if they had come: a fault that is to happen after them happens to the
    /// next.
    pub fn skip(&self, chains: u64) {
        self.shared.chains.fetch_add(chains, Ordering::Relaxed);
    }

    /// Keeps the next report of these guest physical addresses: it is discarded and acknowledged after
    /// [`Self::acknowledge`].
    pub fn keep(&self, addresses: Range<u64>) {
        self.shared.gate.close(addresses);
    }

    /// Waits for the report that is kept.
    ///
    /// # Errors
    /// If none comes in time.
    pub fn kept(&self, timeout: Duration) -> Result<Chain> {
        self.shared.gate.kept(timeout)
    }

    /// Has the report that is kept discarded and acknowledged, and keeps no other.
    pub fn acknowledge(&self) {
        self.shared.gate.open();
    }

    /// What it has done.
    pub fn served(&self) -> Served {
        let Shared { chains, faults, discarded_bytes, .. } = &*self.shared;
        Served {
            chains: chains.load(Ordering::Relaxed),
            faults: faults.load(Ordering::Relaxed),
            discarded_bytes: discarded_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for FaultyDevice {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.gate.open();
        if let Some(session) = lock(&self.shared.session).take() {
            session.shutdown();
        }
        // Wakes it while it waits for a frontend; no answer comes.
        let _ = UnixStream::connect(self.socket());
        if let Some(thread) = self.thread.take() {
            // It says by itself what it dies of.
            let _ = thread.join();
        }
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("vhost-user.sock")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one frontend after the other.
fn serve(shared: &Arc<Shared>, mut listener: Listener) {
    while !shared.stop.load(Ordering::Relaxed) {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let backend = Arc::new(FaultyBackend::new(shared));
        let started = VhostUserDaemon::new("faulty-device".to_owned(), backend, memory)
            .and_then(|mut framework| framework.start(&mut listener).map(|()| framework));
        let mut framework = match started {
            Ok(framework) => framework,
            Err(error) => {
                eprintln!("faulty device: {error}");
                return;
            }
        };
        *lock(&shared.session) = framework.shutdown_handle();
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // That it ends is all there is to know: the frontend has gone.
        let _ = framework.wait();
        lock(&shared.session).take();
    }
}

/// One connection.
struct FaultyBackend {
    shared: Arc<Shared>,
    memory: Mutex<Memory>,
    /// Chains that were served and not returned, of [`FaultKind::ReorderAcks`].
    held: Mutex<Vec<u16>>,
    exit_event: Mutex<Option<RawFd>>,
}

impl FaultyBackend {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            memory: Mutex::new(GuestMemoryAtomic::new(GuestMemoryMmap::new())),
            held: Mutex::default(),
            exit_event: Mutex::default(),
        }
    }

    fn snapshot(&self) -> Arc<GuestMemoryMmap> {
        lock(&self.memory).memory().into_inner()
    }

    /// Takes a chain off the queue, if there is one.
    fn next(&self, vring: &VringMutex<Memory>) -> Option<Head> {
        let mut state = vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() {
            return None;
        }
        state.get_queue_mut().iter(self.snapshot()).ok()?.next()
    }

    /// Remembers a chain and discards the memory that it reports, once it is not kept.
    fn discard(&self, chain: Head) {
        let snapshot = self.snapshot();
        let (starts, sizes): (Vec<u64>, Vec<u64>) =
            chain.map(|chunk| (chunk.addr().0, u64::from(chunk.len()))).unzip();
        let chain = Chain { at: Instant::now(), bytes: sizes.iter().sum(), sizes, starts };
        self.shared.gate.pass(&chain);
        for (start, size) in chain.starts.iter().zip(&chain.sizes) {
            match punch(&snapshot, GuestAddress(*start), *size) {
                Ok(()) => self.shared.discarded_bytes.fetch_add(*size, Ordering::Relaxed),
                Err(error) => {
                    eprintln!(
                        "faulty device: cannot discard {size} bytes at {start:#x}: {error:#}"
                    );
                    0
                }
            };
        }
        let mut log = lock(&self.shared.log);
        if log.len() < MOST_CHAINS {
            log.push(chain);
        }
    }

    /// Serves and returns one chain of the reporting queue, as the plan has it.
    fn report(&self, vring: &VringMutex<Memory>, chain: Head) -> Result<()> {
        let index = chain.head_index();
        let number = self.shared.chains.fetch_add(1, Ordering::Relaxed);
        let fault = self.shared.plan.of_chain(number);
        if let Some(fault) = fault {
            self.shared.faults.fetch_add(1, Ordering::Relaxed);
            if fault.kind == FaultKind::EarlyAck {
                vring.add_used(index, 0)?;
                vring.signal_used_queue()?;
                thread::sleep(Duration::from_millis(fault.millis()));
                self.discard(chain);
                return Ok(());
            }
        }
        self.discard(chain);
        let mut len = 0;
        match fault.map(|fault| (fault.kind, fault.millis())) {
            Some((FaultKind::DelayAck, ms)) => thread::sleep(Duration::from_millis(ms)),
            Some((FaultKind::DropAck, _)) => return Ok(()),
            Some((FaultKind::DuplicateAck, _)) => vring.add_used(index, 0)?,
            Some((FaultKind::ReorderAcks, _)) => {
                let mut held = lock(&self.held);
                held.push(index);
                if held.len() == 2 {
                    for head in held.drain(..).rev() {
                        vring.add_used(head, 0)?;
                    }
                    vring.signal_used_queue()?;
                }
                return Ok(());
            }
            Some((FaultKind::WrongAck, _)) => {
                self.return_nothing_of_ours(&mut vring.get_mut())?;
                return Ok(vring.signal_used_queue()?);
            }
            Some((FaultKind::LostInterrupt, _)) => return Ok(vring.add_used(index, 0)?),
            Some((FaultKind::SpuriousInterrupt, _)) => {
                vring.signal_used_queue()?;
                // So that the driver looks before there is something.
                thread::sleep(Duration::from_millis(1));
            }
            Some((FaultKind::UsedLength, _)) => len = USED_BYTES,
            _ => {}
        }
        vring.add_used(index, len)?;
        Ok(vring.signal_used_queue()?)
    }

    /// Writes an entry into the used ring that names no chain (virtio 1.3, 2.7.8).
    fn return_nothing_of_ours(&self, state: &mut VringState<Memory>) -> Result<()> {
        let memory = self.snapshot();
        let queue = state.get_queue_mut();
        let (ring, index) = (queue.used_ring(), queue.next_used());
        let slot = u64::from(index % queue.size());
        memory.write_obj([NO_HEAD, 0], GuestAddress(ring + 4 + 8 * slot))?;
        let next = index.wrapping_add(1);
        queue.set_next_used(next);
        memory.store(next, GuestAddress(ring + 2), Ordering::Release)?;
        Ok(())
    }
}

/// Punches a hole into the file behind a range of guest memory.
fn punch(memory: &GuestMemoryMmap, start: GuestAddress, bytes: u64) -> Result<()> {
    let (region, offset) = memory.to_region_addr(start).context("outside guest memory")?;
    let region: &GuestRegionMmap = region;
    let end = offset.0.checked_add(bytes).context("past 2^64")?;
    ensure!(end <= region.len(), "past the end of its region");
    let file = region.file_offset().context("no file behind it")?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.file(), flags, file.start() + offset.0, bytes).context("fallocate")
}

/// As in the daemon: the framework gives this descriptor up without closing it.
impl Drop for FaultyBackend {
    fn drop(&mut self) {
        if let Some(fd) = lock(&self.exit_event).take() {
            // SAFETY: the framework gave up ownership with `into_raw_fd`, and whatever of it used
            // the number held this backend, too, and is gone.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

impl VhostUserBackend for FaultyBackend {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        ring_feature::VERSION_1
            | ring_feature::INDIRECT_DESC
            | ring_feature::EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | guest_driver::virtio::balloon::feature::REPORTING
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let end = usize::try_from(offset.saturating_add(size)).unwrap_or(usize::MAX);
        // Nothing in it, however much is asked for.
        vec![0; usize::try_from(size).unwrap_or(0).min(end).min(CONFIG_BYTES)]
    }

    fn set_config(&self, _offset: u32, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        *lock(&self.memory) = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let events = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC);
        let (consumer, notifier) = events.ok()?;
        *lock(&self.exit_event) = Some(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringMutex<Memory>],
        _thread: usize,
    ) -> io::Result<()> {
        let index = usize::from(queue);
        let Some(vring) = vrings.get(index) else { return Ok(()) };
        // A chain may come between the last look and the driver's leave to kick.
        while {
            while let Some(head) = self.next(vring) {
                let done = if index >= FIRST_REPORTING {
                    self.report(vring, head)
                } else {
                    vring.add_used(head.head_index(), 0).map_err(anyhow::Error::from)
                };
                if let Err(error) = done {
                    eprintln!("faulty device: queue {index}: {error:#}");
                }
            }
            vring.enable_notification().unwrap_or(false)
        } {}
        Ok(())
    }
}
