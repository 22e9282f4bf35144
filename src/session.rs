//! One frontend connection, from accept to hang-up.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use log::{error, info};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as FrameworkError, ShutdownHandle, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::BalloonBackend;
use crate::memory::GuestMemory;
use crate::state::State;

/// Why a connection could not be served, or was not served to its end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The framework could not be set up.
    #[error("cannot set up the connection: {0}")]
    SetUp(FrameworkError),
    /// A descriptor or a thread could not be had.
    #[error("cannot set up the connection")]
    Resources(#[source] io::Error),
    /// The frontend broke the protocol.
    #[error("the frontend broke the vhost-user protocol: {0}")]
    Protocol(FrameworkError),
}

/// A frontend that is being served, by the framework's threads and one that waits for its end.
pub struct Session {
    waiter: JoinHandle<()>,
    shutdown: Option<ShutdownHandle>,
    backend: Arc<BalloonBackend>,
}

impl Session {
    /// Accepts the connection that waits on `listener` and serves it. When it is over, and all
    /// that belongs to it is gone, `ended` is signalled.
    ///
    /// # Errors
    /// [`SessionError`]; the connection is closed.
    pub fn start(
        listener: &mut Listener,
        ended: EventFd,
        state: &Arc<State>,
    ) -> Result<Self, SessionError> {
        let before = state.counters.snapshot();
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let backend = Arc::new(BalloonBackend::new(Arc::clone(state)));
        let mut framework =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&backend), memory)
                .map_err(SessionError::SetUp)?;
        framework.start(listener).map_err(SessionError::SetUp)?;
        let shutdown = framework.shutdown_handle();
        info!("frontend connected");

        let waited = Arc::clone(&backend);
        let counters = Arc::clone(&state.counters);
        let waiter = thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                match outcome(framework.wait()) {
                    Ok(()) => info!("frontend disconnected"),
                    Err(error) => error!("{error}; connection closed"),
                }
                waited.stop();
                // Joins the worker, and unmaps the guest's memory.
                drop(framework);
                info!("session: {}", counters.snapshot().since(&before));
                if let Err(error) = ended.write(1) {
                    error!("cannot signal the end of a session: {error}");
                }
            })
            .map_err(SessionError::Resources)?;
        Ok(Self { waiter, shutdown, backend })
    }

    /// Hangs up on the frontend.
    pub fn hang_up(&self) {
        self.backend.stop();
        if let Some(shutdown) = &self.shutdown {
            shutdown.shutdown();
        }
    }

    /// Waits for the last thread, which has signalled the end or is about to.
    pub fn join(self) {
        if self.waiter.join().is_err() {
            error!("the thread that waits for the frontend panicked");
        }
    }
}

/// A frontend that goes is no error, even if it goes in the middle of a message.
fn outcome(end: Result<(), FrameworkError>) -> Result<(), SessionError> {
    match end {
        Ok(())
        | Err(FrameworkError::HandleRequest(
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(error) => Err(SessionError::Protocol(error)),
    }
}
