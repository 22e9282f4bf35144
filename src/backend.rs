//! The vhost-user backend: translates the framework's calls for the device and the memory.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use log::{debug, warn};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::device::features::{MAX_QUEUE_SIZE, NUM_QUEUES};
use crate::log_limit::LogLimit;
use crate::memory::{Fallocate, GuestMemory, LogBitmap, Reclaimer};
use crate::state::State;
use crate::vring::Vring;

/// The balloon device, for one frontend connection.
pub struct BalloonBackend {
    state: Arc<State>,
    reclaimer: Reclaimer<Fallocate>,
    limit: LogLimit,
    exit_event: Mutex<Option<RawFd>>,
}

impl BalloonBackend {
    /// A connection to the device with this state.
    pub fn new(state: Arc<State>) -> Self {
        let (inhibit, counters) = (Arc::clone(&state.inhibit), Arc::clone(&state.counters));
        Self {
            reclaimer: Reclaimer::new(Fallocate, state.memory, inhibit, counters),
            state,
            limit: LogLimit::default(),
            exit_event: Mutex::new(None),
        }
    }

    /// Lets the worker end soon: a discard under way stops after its present call.
    pub fn stop(&self) {
        self.reclaimer.stop();
    }
}

/// Closes the eventfd that told the worker to exit.
///
/// vhost-user-backend 0.24 keeps it as a bare number in its epoll set and never closes it, which
/// costs a descriptor a connection. The test that counts descriptors over many connections guards
/// this against a version that mends it.
impl Drop for BalloonBackend {
    fn drop(&mut self) {
        let fd = self.exit_event.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(fd) = fd {
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
        self.state.balloon.offered()
    }

    fn acked_features(&self, features: u64) {
        self.state.balloon.set_acked_features(features);
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

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.state.balloon.config().read(offset, size)
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.state.balloon.config().write(offset, bytes);
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemory>) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        debug!("guest memory: {} regions", memory.num_regions());
        self.reclaimer.set_memory(memory).map_err(io::Error::other)
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
        let (Some(vring), Some(role)) = (vrings.get(index), self.state.balloon.role(index)) else {
            return Ok(());
        };
        let keep_on = || !self.reclaimer.is_stopping();
        let snapshot = || self.reclaimer.snapshot();
        let drained = vring.drain(keep_on, snapshot, |snapshot, head| {
            self.state.balloon.serve(role, head, snapshot.as_ref(), |ranges| {
                let reported = ranges.len();
                let done = snapshot.discard(ranges);
                debug!(
                    "queue {index}: {reported} ranges reported, {} bytes discarded in {} calls",
                    done.bytes, done.calls
                );
            })
        });
        if let Err(error) = drained {
            let source = std::error::Error::source(&error);
            let source = source.map(|source| format!(": {source}")).unwrap_or_default();
            self.limit.run(|| warn!("queue {index}: {error}{source}"));
        }
        if self.state.balloon.take_config_changed()
            && let Some(frontend) = self.state.frontend()
            && let Err(error) = frontend.config_changed()
        {
            self.limit
                .run(|| warn!("cannot tell the driver that its configuration changed: {error}"));
        }
        Ok(())
    }
}
