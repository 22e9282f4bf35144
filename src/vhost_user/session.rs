// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One frontend connection, from accept to hang-up.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::{fmt, io};

use log::{error, info};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as FrameworkError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;
use vm_memory::mmap::MmapRegionError;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::discard::{Cause, GuestMemory};
use crate::hand_over::History;
use crate::logging::report;
use crate::state::{Frontend, State};
use crate::vhost_user::backend::{BalloonBackend, STATISTICS_WANTED, StopHandle};
use crate::wake::Wake;

use super::admission::Admission;
use super::error::{MessageError, Refusal};
use super::frontend_channel::Link;
use super::message::Message;
use super::relay::{self, Relay};
use super::vmm_target;

/// Why a connection could not be served, or was not served to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The framework could not be set up.
    #[error("cannot set up the connection: {0}")]
    SetUp(FrameworkError),
    /// A descriptor or a thread could not be had.
    #[error("cannot set up the connection")]
    Resources(#[source] io::Error),
    /// This process or its machine lacks something: descriptors, memory, threads.
    #[error("cannot go on serving the frontend, at {last} or just before it: {error}")]
    Lacking {
        /// The last message that the framework was given.
        last: LastMessage,
        /// What the framework says.
        error: FrameworkError,
    },
    /// A message of the frontend could not be received or passed on.
    #[error("cannot go on serving the frontend")]
    Connection(#[source] MessageError),
    /// The frontend broke the protocol.
    #[error("the frontend broke the vhost-user protocol, with {last} or just before it: {error}")]
    Protocol {
        /// The last message that the framework was given.
        last: LastMessage,
        /// What the framework says.
        error: FrameworkError,
    },
    /// The frontend sent what is no message.
    #[error("the frontend broke the vhost-user protocol")]
    Message(#[source] MessageError),
    /// The frontend sent what this daemon does not take.
    #[error("the frontend is refused")]
    Refused(#[source] Refusal),
}

impl From<MessageError> for SessionError {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Refused(refusal) => Self::Refused(refusal),
            MessageError::Socket(_) | MessageError::NoRoomForDescriptors => Self::Connection(error),
            error => Self::Message(error),
        }
    }
}

/// The message that a frontend sent last, if it sent any. The framework does not say which one it
/// turned down, and it may be a few behind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastMessage(Option<FrontendReq>);

impl fmt::Display for LastMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(request) => write!(f, "{request:?}"),
            None => f.write_str("no message"),
        }
    }
}

/// A frontend that is being served, by the framework's threads and one that passes messages on to
/// them and then waits for their end.
///
/// This owns nothing of the connection: guest memory, files and channels are the session's thread's
/// to unmap and to close, which may take seconds. Dropping it waits for nothing and ends nothing.
pub(crate) struct Session {
    #[cfg(test)]
    thread: std::thread::JoinHandle<()>,
    stop: StopHandle,
    failed: Arc<AtomicBool>,
    /// Has not come to where the daemon before this one was.
    resumes: Arc<AtomicBool>,
}

impl Session {
    /// Serves the connection that `accept` gives, which is called once everything else is there, and
    /// goes on behind its history.
    /// When it is over, and all that belongs to it is gone, `ended` is signalled.
    ///
    /// # Errors
    /// [`SessionError`]; a connection that was accepted is closed.
    pub(crate) fn start(
        accept: impl FnOnce() -> io::Result<(UnixStream, Option<History>)>,
        ended: EventFd,
        state: &Arc<State>,
    ) -> Result<Self, SessionError> {
        let before = state.counters.snapshot();
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let stop = Arc::new(Wake::new().map_err(SessionError::Resources)?);
        let link =
            Arc::new(Link::new(Arc::clone(&state.inhibit)).map_err(SessionError::Resources)?);
        let backend = BalloonBackend::new(Arc::clone(state), Arc::clone(&link), Arc::clone(&stop));
        let backend = Arc::new(backend.map_err(SessionError::Resources)?);
        let mut framework =
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&backend), memory)
                .map_err(SessionError::SetUp)?;
        for worker in framework.get_epoll_handlers() {
            let (fd, data) = (link.statistics_fd(), u64::from(STATISTICS_WANTED));
            worker.register_listener(fd, EventSet::IN, data).map_err(SessionError::Resources)?;
            backend.attach(&worker).map_err(SessionError::Resources)?;
        }
        let (inner, listener) = relay::pair().map_err(SessionError::Resources)?;
        framework.start(&mut Listener::from(listener)).map_err(SessionError::SetUp)?;
        let (frontend, history) = accept().map_err(SessionError::Resources)?;
        if history.is_none() {
            info!("frontend connected");
        }

        let relay = Relay { frontend, framework: inner, stop };
        let mut admission = Admission::new(state.memory);
        state.set_frontend(Some(Arc::clone(&link) as Arc<dyn Frontend>));
        let handle = backend.stop_handle();
        let (working, shared) = (backend, Arc::clone(state));
        let failed = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&failed);
        let resumes = Arc::new(AtomicBool::new(history.is_some()));
        let resuming = Arc::clone(&resumes);
        let serve = move || {
            let mut last = LastMessage::default();
            let worker = working.worker_thread();
            let held = shared.held();
            let mut look = |message: &mut Message| {
                let ahead = admission.check(message);
                shared.set_refused(admission.refused());
                let ahead = ahead?;
                last = LastMessage(FrontendReq::try_from(message.request()).ok());
                link.look(message);
                if let Some(pages) = vmm_target::pages(message)
                    && shared.balloon.set_target_of_vmm(pages)
                {
                    shared.keep();
                }
                Ok(ahead)
            };
            let (settings, asked) = match history {
                Some(history) => (Some(history.settings), history.asked),
                None => (None, None),
            };
            let resumed = match (settings, held) {
                (Some(settings), Some(held)) => relay.replay(settings, &mut look).inspect(|()| {
                    resuming.store(false, Ordering::Release);
                    shared.set_resuming(false);
                    held.resumed();
                    info!("going on with the frontend of the daemon before this one");
                    // Of what was wanted last it may not have been told.
                    shared.balloon.owe_config_change();
                    shared.tell_driver_later();
                }),
                (_, held) => {
                    held.inspect(|held| held.begin(&relay.frontend));
                    Ok(())
                }
            };
            let received = |message: &mut Message| {
                let ahead = look(message)?;
                held.inspect(|held| held.received(message.bytes(), message.fds()));
                Ok(ahead)
            };
            let answered = || {
                held.inspect(|held| held.answered());
            };
            let relayed = resumed.and_then(|()| relay.run(asked, received, answered));
            shared.wind_up.hung_up(worker);
            working.stop_handle().stop();
            // The frontend sees the end when the store has its connection no more.
            if let Some(held) = held.filter(|_| !resuming.load(Ordering::Acquire)) {
                held.end();
            }
            // The relay has hung up on the framework.
            let served = outcome(framework.wait(), last);
            match relayed.map_err(SessionError::from).and(served) {
                Ok(()) => info!("frontend disconnected"),
                Err(error) => {
                    failing.store(true, Ordering::Release);
                    report("connection closed", &error);
                }
            }
            shared.session_ends();
            shared.set_frontend(None);
            // Another thread may hold the link a moment longer: it must not be the one to close it.
            link.close();
            drop(link);
            // Joins the worker.
            drop(framework);
            shared.wind_up.threads_ended(working.memory_bytes());
            // Unmaps the guest's memory.
            drop(working);
            shared.rings.clear();
            // Whoever migrated, it was this frontend.
            shared.inhibit.lift(Cause::Migration);
            shared.inhibit.lift(Cause::Postcopy);
            info!("session: {}", shared.counters.snapshot().since(&before));
            shared.wind_up.down();
        };
        let thread = thread::Builder::new().name("session".to_owned()).spawn(move || {
            // Told when nothing of the session is left, not even what `serve` has captured.
            let _ended = Ended(ended);
            serve();
        });
        match thread {
            // Detached: it signals its end, and the main thread waits for no session.
            Ok(_thread) => Ok(Self {
                #[cfg(test)]
                thread: _thread,
                stop: handle,
                failed,
                resumes,
            }),
            Err(error) => {
                state.set_frontend(None);
                Err(SessionError::Resources(error))
            }
        }
    }

    /// Whether it ended, or is about to, by something else than a hang-up.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether it did not get as far as the daemon before this one was.
    pub(crate) fn is_behind(&self) -> bool {
        self.resumes.load(Ordering::Acquire)
    }

    /// Hangs up on the frontend.
    pub(crate) fn hang_up(&self) {
        self.stop.stop();
    }

    /// Waits for the last thread, which has signalled the end or is about to. Not for a thread that
    /// others wait for.
    #[cfg(test)]
    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            error!("the thread of a session panicked");
        }
    }
}

/// Tells the end of a session when it is dropped, after a panic, too.
struct Ended(EventFd);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Err(error) = self.0.write(1) {
            error!("cannot signal the end of a session: {error}");
        }
    }
}

/// A frontend that goes is no error, even if it goes in the middle of a message.
fn outcome(end: Result<(), FrameworkError>, last: LastMessage) -> Result<(), SessionError> {
    match end {
        Ok(())
        | Err(FrameworkError::HandleRequest(
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(FrameworkError::HandleRequest(VhostUserError::ReqHandlerError(error)))
            if is_lack(&error) =>
        {
            let error = FrameworkError::HandleRequest(VhostUserError::ReqHandlerError(error));
            Err(SessionError::Lacking { last, error })
        }
        Err(error) => Err(SessionError::Protocol { last, error }),
    }
}

/// Whether the kernel had no descriptor, no memory or no thread to give, as far as the error keeps
/// its causes.
fn is_lack(error: &io::Error) -> bool {
    let lacks = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // Which has a cause that it does not tell.
        let io = match error.downcast_ref() {
            Some(MmapRegionError::Mmap(error)) => Some(error),
            _ => error.downcast_ref::<io::Error>(),
        };
        if io.and_then(io::Error::raw_os_error).is_some_and(|errno| lacks.contains(&errno)) {
            return true;
        }
        cause = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_our_own_is_not_the_frontends_fault() {
        let outcome = |error: io::Error| {
            let error = FrameworkError::HandleRequest(VhostUserError::ReqHandlerError(error));
            outcome(Err(error), LastMessage::default())
        };
        for errno in [libc::EMFILE, libc::ENOMEM] {
            let plain = outcome(io::Error::from_raw_os_error(errno));
            assert!(matches!(plain, Err(SessionError::Lacking { .. })), "{plain:?}");
            let mapping = MmapRegionError::Mmap(io::Error::from_raw_os_error(errno));
            let wrapped = outcome(io::Error::other(mapping));
            assert!(matches!(wrapped, Err(SessionError::Lacking { .. })), "{wrapped:?}");
        }
        let invalid = outcome(io::Error::from_raw_os_error(libc::EINVAL));
        assert!(matches!(invalid, Err(SessionError::Protocol { .. })), "{invalid:?}");
    }
}
