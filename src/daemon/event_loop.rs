// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The main thread: an event loop over the listener, the signals and the end of a session.
//!
//! One frontend is served at a time, since a socket stands for one device. Others wait until it has
//! gone (see `Waiting`).

mod ending;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber, SubscriberOps};
use log::{info, warn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::cli::{Config, SocketSource};
use crate::daemon::announcer::Announcer;
use crate::daemon::error::{DaemonError, Failure, resources};
use crate::daemon::operators::{self, Subscribers};
use crate::daemon::resume;
use crate::daemon::sigbus;
use crate::daemon::signals;
use crate::daemon::socket::{self, Access, Frontends};
use crate::daemon::waiting::Waiting;
use crate::daemon::watchdog;
use crate::discard::Cause;
use crate::hand_over::History;
use crate::logging::rate_limit::LogLimit;
use crate::logging::report;
use crate::state::State;
use crate::vhost_user::{Session, SessionError};
use crate::wake::Wake;

/// How long a frontend waits that could not be served for lack of descriptors or threads.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Serves VMMs on the configured socket, one after another, until SIGTERM, SIGINT or SIGQUIT; on a
/// connected socket, until its VMM disconnects.
///
/// The file of a socket that it made is gone when this returns. Call it before anything is opened if
/// the socket is a descriptor, and before any thread starts that takes signals: it blocks the signals
/// that it receives, in this thread and in those that it starts. It replaces the process's handler of
/// SIGBUS.
///
/// # Errors
/// [`DaemonError`] if the daemon cannot start, its event loop fails, or the session of a connected
/// socket fails. Nothing that a VMM does to a listening daemon is an error here.
///
/// # Examples
/// A VMM that connects and disconnects:
/// ```standalone_crate
/// use std::os::fd::IntoRawFd;
/// use std::os::unix::net::UnixStream;
///
/// let (vmm, socket) = UnixStream::pair()?;
/// let fd = socket.into_raw_fd().to_string();
/// let config = vhost_device_balloon::Config::from_args(["vhost-device-balloon", "--fd", &fd])?;
/// drop(vmm);
/// vhost_device_balloon::run(&config)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run(config: &Config) -> Result<(), DaemonError> {
    serve(config)?;
    Ok(())
}

/// As [`run`]. Returns whether the next daemon goes on with the frontend.
pub(crate) fn serve(config: &Config) -> Result<bool, Failure> {
    // A descriptor first, while every number is whose the caller says it is; a file after the
    // signals, or one that came in between would leave it behind.
    let mut inherited = BTreeMap::new();
    let adopted = match &config.socket {
        SocketSource::Fd(fd) => Ok(socket::adopt(*fd)?),
        SocketSource::Path(path) => {
            inherited = resume::inherited();
            Err(path)
        }
    };
    raise_descriptor_limit();
    let access = Access {
        mode: config.socket_mode,
        group: config.socket_group.as_deref().map(socket::group).transpose()?,
    };
    let signals = signals::set_up().map_err(resources("receive signals"))?;
    sigbus::install().map_err(resources("handle SIGBUS"))?;
    let state = Arc::new(State::new(config.device, config.memory));
    let mut resumed = resume::open(&state, inherited)?;
    let operators = operators::listen(config, &mut resumed)?;
    if config.paused && !resumed.resumes {
        // Nothing is under way yet.
        let _ = state.inhibit.forbid(Cause::Operator);
        state.keep();
    }
    let interval_changed = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
        .map_err(resources("create an eventfd"))?;
    state.on_interval_changed(interval_changed.try_clone().map_err(resources("keep an eventfd"))?);
    let session_ended = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)
        .map_err(resources("create an eventfd"))?;
    let timer = || TimerFd::new().map_err(resources("create a timer"));
    let (statistics, retry) = (timer()?, timer()?);
    let end = Arc::new(Wake::new().map_err(resources("create an eventfd"))?);
    // The first thread: from now on the process can be ended, whatever this one does.
    watchdog::start(&state, signals, Arc::clone(&end)).map_err(resources("start a thread"))?;
    if config.control_socket.is_some() || config.metrics_address.is_some() {
        state.survey.start().map_err(resources("start a thread"))?;
    }
    let mut manager = Subscribers::new()?;
    let _control_file = operators.serve(&state, &mut manager)?;
    let mut replaced = false;
    let announcer = Announcer::new(&state).map_err(resources("tell drivers of changes"))?;
    manager.add_subscriber(Rc::new(RefCell::new(announcer)));
    // The socket for frontends last: who finds it finds everything else, too.
    let (frontends, _socket_file) = match adopted {
        Ok(frontends) => (frontends, None),
        Err(path) => {
            let listening = match resumed.frontend.take() {
                Some(listener) => socket::listen_on(listener, path, access)?,
                None => socket::listen(path, access)?,
            };
            let listening = resumed.hold("frontend", listening);
            replaced = listening.replaced;
            (Frontends::Listener(listening.listener), Some(listening.file))
        }
    };
    let frontends = match frontends {
        Frontends::Listener(listener) => {
            Source::Listener(Waiting::new(listener, CONNECTION, Arc::clone(&state)))
        }
        Frontends::Connected(stream) => Source::Connected(stream),
    };
    let daemon = Rc::new(RefCell::new(Daemon {
        state,
        resumed: resumed.connection.take(),
        frontends,
        end,
        statistics,
        statistics_every: Duration::ZERO,
        interval_changed,
        session: None,
        session_ended,
        retry,
        limit: LogLimit::default(),
        statistics_limit: LogLimit::default(),
        ending: false,
        lets_go_until: None,
        ended: None,
    }));
    manager.add_subscriber(Rc::clone(&daemon) as _);
    match &config.socket {
        SocketSource::Path(path) => info!("listening on {}", path.display()),
        SocketSource::Fd(fd) => info!("using the socket of descriptor {fd}"),
    }
    if daemon.borrow().resumed.is_none()
        && let Some(held) = &resumed.held
    {
        held.ready();
    }
    if replaced {
        // It is not known whether a VMM was connected, nor which one.
        warn!(
            "replaced the socket of a daemon that died: a VMM that was connected to it may still \
             run. QEMU does not connect again, and its guest keeps the memory that it frees until \
             the VM is restarted; cloud-hypervisor tries for a minute"
        );
    }
    loop {
        let mut serving = daemon.borrow_mut();
        if let Some(result) = serving.ended.take() {
            let Some(held) = &resumed.held else { return result.map(|()| false) };
            let leaves = held.is_leaving();
            if result.is_ok() && !leaves {
                held.finish();
            }
            return result.map(|()| leaves);
        }
        serving.keep_time();
        drop(serving);
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => {}
            Err(error) => return Err(Failure::EventLoop(error)),
        }
    }
}

/// The most descriptors that are asked for: a VMM's regions and every client, many times over.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Raises the soft limit of open descriptors as far as the hard one allows: each region of guest
/// memory keeps one, and shells start their programs with 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit { current: Some(most), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!("cannot raise the limit of open descriptors to {most}: {error}");
        }
    }
}

const END: u32 = 0;
const SESSION_ENDED: u32 = 1;
const RETRY: u32 = 2;
const STATISTICS: u32 = 3;
const INTERVAL_CHANGED: u32 = 4;
/// Greater ones are those of connections.
const CONNECTION: u32 = 5;

/// Where the next session comes from.
enum Source {
    /// Whoever connects.
    Listener(Waiting),
    /// The only frontend there will be; none once it is served.
    Connected(Option<UnixStream>),
}

struct Daemon {
    state: Arc<State>,
    /// The frontend of the daemon before this one, until it is served.
    resumed: Option<(UnixStream, History)>,
    frontends: Source,
    /// Signalled when a signal asks to end.
    end: Arc<Wake>,
    /// Asks for statistics while a frontend is connected.
    statistics: TimerFd,
    /// What that timer is set to; zero if it stands.
    statistics_every: Duration,
    /// Another thread has set the interval: a device migrated here.
    interval_changed: EventFd,
    session: Option<Session>,
    session_ended: EventFd,
    retry: TimerFd,
    limit: LogLimit,
    statistics_limit: LogLimit,
    /// Was told to end, and waits for the session to be down.
    ending: bool,
    /// Until when a reclaim may let go of the guest meanwhile.
    lets_go_until: Option<Instant>,
    /// How the event loop ends.
    ended: Option<Result<(), Failure>>,
}

impl Daemon {
    /// Serves the next frontend if none is served and one waits.
    fn serve(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        let waits = match &self.frontends {
            _ if self.resumed.is_some() => true,
            Source::Listener(waiting) => waiting.has_next(),
            Source::Connected(stream) => stream.is_some(),
        };
        if self.session.is_none() && !self.ending && waits {
            let (frontends, resumed) = (&mut self.frontends, &mut self.resumed);
            let resumes = resumed.is_some();
            let accept = || {
                if let Some((stream, history)) = resumed.take() {
                    return Ok((stream, Some(history)));
                }
                let stream = match frontends {
                    Source::Listener(waiting) => waiting.next(ops),
                    Source::Connected(stream) => {
                        stream.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
                    }
                };
                stream.map(|stream| (stream, None))
            };
            let started = match self.session_ended.try_clone() {
                Ok(ended) => Session::start(accept, ended, &self.state),
                Err(error) => Err(SessionError::Resources(error)),
            };
            match started {
                Ok(session) => self.session = Some(session),
                // The next daemon has another try.
                Err(error) if resumes => {
                    report("cannot go on with the frontend", &error);
                    return Err(Failure::Behind);
                }
                Err(error) if matches!(self.frontends, Source::Connected(None)) => {
                    return Err(Failure::Frontend(error));
                }
                Err(error) => self.try_later(&error),
            }
        }
        if let (Some(_), Source::Listener(waiting)) = (&self.session, &mut self.frontends) {
            waiting.tell();
        }
        Ok(())
    }

    fn try_later(&mut self, error: &dyn std::error::Error) {
        self.limit.run(|| report("cannot serve a frontend, trying again", error));
        if let Err(error) = self.retry.reset(RETRY_AFTER, None) {
            warn!("cannot set a timer, no frontend will be served again: {error}");
        }
    }

    /// An event of the listener, or of a connection that waits.
    fn connection(&mut self, event: Events, ops: &mut EventOps) -> Result<(), Failure> {
        let Source::Listener(waiting) = &mut self.frontends else { return Ok(()) };
        if event.data() != CONNECTION {
            waiting.look(event, ops);
            return self.serve(ops);
        }
        if let Err(error) = waiting.accept(ops) {
            // It waits still, and would wake this loop again at once.
            waiting.rest(ops)?;
            self.try_later(&SessionError::Resources(error));
        }
        Ok(())
    }

    /// Looks for frontends, and serves one that there is.
    fn next_frontend(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        if let Source::Listener(waiting) = &mut self.frontends {
            waiting.listen(ops)?;
        }
        self.serve(ops)
    }

    fn try_again(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        if let Err(error) = self.retry.wait() {
            warn!("cannot read a timer: {error}");
        }
        if self.ending {
            self.let_go();
            return Ok(());
        }
        self.next_frontend(ops)
    }

    fn session_over(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        let _ = self.session_ended.read();
        // Nothing of it is waited for, or closed: its thread has seen to that, and signalled last.
        let session = self.session.take();
        if !self.ending && session.as_ref().is_some_and(Session::is_behind) {
            self.ended = Some(Err(Failure::Behind));
            return Ok(());
        }
        let failed = session.is_some_and(|session| session.has_failed());
        if failed && !self.ending && matches!(self.frontends, Source::Connected(None)) {
            self.ended = Some(Err(Failure::Session));
            return Ok(());
        }
        if self.ending || matches!(self.frontends, Source::Connected(None)) {
            self.ended = Some(Ok(()));
            return Ok(());
        }
        // The next one's time begins with it.
        self.keep_time();
        self.serve(ops)
    }

    /// Sets the timer for statistics to the present interval.
    fn keep_time(&mut self) {
        let interval = match &self.session {
            Some(_) => self.state.balloon.statistics_interval(),
            None => Duration::ZERO,
        };
        if interval == self.statistics_every {
            return;
        }
        let set = match interval.is_zero() {
            true => self.statistics.clear(),
            false => self.statistics.reset(interval, Some(interval)),
        };
        if let Err(error) = set {
            warn!("cannot set the timer for statistics: {error}");
        }
        self.statistics_every = interval;
    }

    fn ask_for_statistics(&mut self) {
        if let Err(error) = self.statistics.wait() {
            warn!("cannot read a timer: {error}");
        }
        if let Some(frontend) = self.state.frontend()
            && let Err(error) = frontend.poll_statistics()
        {
            self.statistics_limit.run(|| warn!("cannot ask for statistics: {error}"));
        }
    }
}

impl MutEventSubscriber for Daemon {
    fn init(&mut self, ops: &mut EventOps) {
        let added = [
            Events::with_data_raw(self.end.as_fd().as_raw_fd(), END, EventSet::IN),
            Events::with_data(&self.session_ended, SESSION_ENDED, EventSet::IN),
            Events::with_data(&self.retry, RETRY, EventSet::IN),
            Events::with_data(&self.statistics, STATISTICS, EventSet::IN),
            Events::with_data(&self.interval_changed, INTERVAL_CHANGED, EventSet::IN),
        ]
        .into_iter()
        .try_for_each(|events| ops.add(events))
        .map_err(Failure::EventLoop)
        .and_then(|()| self.next_frontend(ops));
        if let Err(error) = added {
            self.ended = Some(Err(error));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let done = match events.data() {
            CONNECTION.. => self.connection(events, ops),
            SESSION_ENDED => self.session_over(ops),
            RETRY => self.try_again(ops),
            STATISTICS => {
                self.ask_for_statistics();
                Ok(())
            }
            INTERVAL_CHANGED => {
                // The timer is set before the loop waits again.
                let _ = self.interval_changed.read();
                Ok(())
            }
            END => {
                self.end();
                Ok(())
            }
        };
        if let Err(error) = done {
            self.ended = Some(Err(error));
        }
    }
}
