//! The vhost-user backend: translates the framework's calls for the device and the memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use log::{debug, info, warn};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::device::Balloon;
use crate::device::features::{self, MAX_QUEUE_SIZE, NUM_QUEUES};
use crate::log_limit::LogLimit;
use crate::memory::{Fallocate, Reclaimer};
use crate::metrics::Counters;
use crate::vring::{Memory, Vring};

/// One balloon device for one frontend connection.
pub struct BalloonBackend {
    device: Balloon,
    reclaimer: Reclaimer<Fallocate>,
    memory: Memory,
    counters: Arc<Counters>,
    limit: LogLimit,
    exit_event: Mutex<Option<RawFd>>,
}

impl BalloonBackend {
    /// A device that counts from zero and reads its rings through `memory`.
    pub fn new(memory: Memory) -> Self {
        let counters = Arc::<Counters>::default();
        Self {
            device: Balloon::new(Arc::clone(&counters)),
            reclaimer: Reclaimer::new(Fallocate, Arc::clone(&counters)),
            memory,
            counters,
            limit: LogLimit::default(),
            exit_event: Mutex::new(None),
        }
    }

    /// What happened on this connection.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Lets the worker end soon: a discard under way stops after its present call.
    pub fn stop(&self) {
        self.reclaimer.stop();
    }

    /// Takes back the eventfd that tells the worker to exit, once the worker has.
    ///
    /// vhost-user-backend 0.24 keeps it as a bare number in its epoll set and never closes it,
    /// which costs a descriptor a connection. The test that counts descriptors over many
    /// connections guards this against a version that mends it.
    ///
    /// # Safety
    /// The framework's worker has ended and nothing else uses the descriptor.
    pub(crate) unsafe fn reclaim_exit_event(&self) -> Option<OwnedFd> {
        let fd = self.exit_event.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // SAFETY: the framework gave up ownership with `into_raw_fd`, and by this function's
        // contract nobody uses the descriptor any more.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl VhostUserBackend for BalloonBackend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        NUM_QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        features::OFFERED
    }

    fn acked_features(&self, features: u64) {
        self.device.set_acked_features(features);
    }

    /// `CONFIG` is a must: without it QEMU and cloud-hypervisor tell the guest to give up all its
    /// memory. The backend channel (`BACKEND_REQ`) is not offered, since there is nothing to say on
    /// it yet: QEMU reports an end of file at start-up when a backend takes it and closes it.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn reset_device(&self) {
        self.device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.device.config().read(offset, size)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.device.config().write(offset, bytes);
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap<()>>) -> io::Result<()> {
        let memory = memory.memory();
        info!("guest memory: {} regions", vm_memory::GuestMemoryBackend::num_regions(&*memory));
        self.reclaimer.set_memory(&memory).map_err(io::Error::other)
    }

    /// The framework joins its worker when a connection ends, and wakes it with this.
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                *self.exit_event.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                warn!("cannot create an eventfd: {error}");
                None
            }
        }
    }

    /// # Errors
    /// Never: an error from here ends the framework's worker in silence.
    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let index = usize::from(queue);
        let (Some(vring), Some(role)) = (vrings.get(index), features::role(index)) else {
            return Ok(());
        };
        let drained = vring.drain(&self.memory, |memory, head| {
            self.device.serve(role, head, memory, |ranges| {
                let reported = ranges.len();
                let done = self.reclaimer.discard(ranges);
                debug!(
                    "queue {index}: {reported} ranges reported, {} bytes discarded in {} calls",
                    done.bytes, done.calls
                );
            });
        });
        if let Err(error) = drained {
            let source = std::error::Error::source(&error);
            let source = source.map(|source| format!(": {source}")).unwrap_or_default();
            self.limit.run(|| warn!("queue {index}: {error}{source}"));
        }
        Ok(())
    }
}
