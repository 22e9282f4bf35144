// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `hostd`: the one process of a host that knows all daemons.
//!
//! It sleeps until something happens: a socket comes or goes, a client asks, a signal comes. With a policy
//! it also looks at the host's memory every ten seconds, and at once under pressure; guests are asked
//! only while the policy needs them.

mod guest;
mod guests;
mod lock;
mod rules;
mod shared;
mod socket;
mod steering;

use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::{io, mem};

use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;

use crate::http;
use crate::log::{self, chain};
use crate::memory::{Memory, Trigger};
use crate::sockets::{self, Watch};
use shared::{Shared, State};
use steering::Steering;

/// Between two looks at the host while the policy needs nothing. Pressure is noticed at once.
const RELAXED_LOOK: Duration = Duration::from_secs(10);

/// How hostd is started.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) socket: PathBuf,
    pub(crate) metrics_address: Option<SocketAddr>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) policy: Option<PathBuf>,
    pub(crate) dry_run: bool,
}

/// Why hostd cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostdError {
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    #[error(transparent)]
    Rules(#[from] rules::RulesFileError),
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
    #[error(
        "expected a loopback address for --metrics-address, got {0}: other machines could reach it"
    )]
    NotLoopback(SocketAddr),
    #[error("cannot serve metrics at {0}")]
    Metrics(SocketAddr, #[source] io::Error),
    #[error("cannot watch the directories of control sockets")]
    Watch(#[source] io::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

/// Runs until SIGTERM, SIGINT or SIGQUIT.
///
/// # Errors
/// [`HostdError`]
pub(crate) async fn run(options: Options) -> Result<(), HostdError> {
    more_descriptors();
    let memory = Memory::new(options.cgroup.clone());
    memory.sample()?;
    let mut ended = signals().map_err(HostdError::Signals)?;
    let mut again = signal(SignalKind::hangup()).map_err(HostdError::Signals)?;
    let mut watch = Watch::new(&options.dirs).map_err(HostdError::Watch)?;
    let shared = Shared::new(memory.clone());
    let mut steering = match &options.policy {
        Some(path) => Some(Steering::new(path, options.dry_run, shared.clone())?),
        None => None,
    };
    if let Some(steering) = &mut steering {
        steering.lock(&options.dirs)?;
    }
    let (unix, _file) = socket::listen(&options.socket)?;
    let tcp = match options.metrics_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let find = || shared.found(sockets::find(&options.dirs));
    find();
    // Ends with the runtime.
    tokio::spawn(http::serve(unix, tcp, shared.clone()));
    let mut trigger = steering.as_ref().and_then(|_| trigger(&memory));
    log::info(format_args!("listening on {}", options.socket.display()));
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let mut stalls = false;
    loop {
        let began = time::Instant::now();
        let mut next = None;
        if let Some(steering) = &mut steering {
            let stalled = mem::take(&mut stalls);
            let (state, pause) = tokio::select! {
                step = step(steering, &memory, stalled) => step,
                name = ended.recv() => return end(name, Some(steering)).await,
            };
            if shared.does(state) {
                log::info(<&str>::from(state));
            }
            next = Some((state, began + pause));
        }
        loop {
            let pause = async {
                match next {
                    Some((_, at)) => time::sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = pause => break,
                changed = watch.changed() => {
                    changed.map_err(HostdError::Watch)?;
                    if let Some(steering) = &mut steering {
                        steering.lock(&options.dirs)?;
                    }
                    find();
                }
                Some(()) = again.recv() => {
                    if steering.as_mut().is_some_and(|steering| steering.read_again(true)) {
                        break;
                    }
                }
                changed = file_changed(&mut steering) => {
                    changed.map_err(HostdError::Watch)?;
                    if steering.as_mut().is_some_and(|steering| steering.read_again(false)) {
                        break;
                    }
                }
                pressed = pressure(&mut trigger) => match pressed {
                    Ok(()) => {
                        stalls = true;
                        // A round that is due anyway says the rest.
                        if next.is_some_and(|(state, _)| state == State::Relaxed) {
                            break;
                        }
                    }
                    Err(error) => {
                        log::warning(format_args!("pressure is no longer noticed: {error}"));
                        trigger = None;
                    }
                },
                name = ended.recv() => return end(name, steering.as_mut()).await,
            }
        }
    }
}

/// Looks at the host, and has a round if the policy needs one. Returns what hostd does until the next
/// look, and how long that is after this one.
async fn step(steering: &mut Steering, memory: &Memory, stalls: bool) -> (State, Duration) {
    let period = steering.period();
    match memory.sample() {
        Ok(sample) if steering.wants_samples(&sample, stalls) => {
            steering.round(&sample, stalls).await;
            (State::Engaged, period)
        }
        Ok(_) => (State::Relaxed, period.max(RELAXED_LOOK)),
        Err(error) => {
            // No lease is renewed.
            log::error(chain(&error));
            (State::Relaxed, period.max(RELAXED_LOOK))
        }
    }
}

/// Ends all leases.
async fn end(signal: &str, steering: Option<&mut Steering>) -> Result<(), HostdError> {
    log::info(format_args!("received {signal}, shutting down"));
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    if let Some(steering) = steering {
        steering.end_leases().await;
    }
    Ok(())
}

/// Waits until something changes beside the file of the policy; without end if there is none.
async fn file_changed(steering: &mut Option<Steering>) -> io::Result<()> {
    match steering {
        Some(steering) => steering.file.changed().await,
        None => pending().await,
    }
}

/// Waits for pressure; without end if it is not noticed.
async fn pressure(trigger: &mut Option<Trigger>) -> io::Result<()> {
    match trigger {
        Some(trigger) => trigger.pressure().await,
        None => pending().await,
    }
}

/// What notices pressure, if the kernel lets this process have it.
fn trigger(memory: &Memory) -> Option<Trigger> {
    let file = memory.pressure_file();
    Trigger::new(&file)
        .map_err(|error| {
            let every = RELAXED_LOOK;
            log::warning(format_args!(
                "cannot wait for pressure at {}: {error}. The host is looked at every {every:?} only",
                file.display()
            ));
        })
        .ok()
}

async fn listen(address: SocketAddr) -> Result<TcpListener, HostdError> {
    if !address.ip().is_loopback() {
        return Err(HostdError::NotLoopback(address));
    }
    let failed = |error| HostdError::Metrics(address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    log::info(format_args!("metrics at http://{address}/metrics"));
    Ok(listener)
}

/// Allows a connection to each of many daemons.
fn more_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warning(format_args!("cannot raise the number of open files: {error}"));
    }
}

/// The signals that end hostd.
struct Ended([(&'static str, tokio::signal::unix::Signal); 3]);

fn signals() -> io::Result<Ended> {
    Ok(Ended([
        ("SIGTERM", signal(SignalKind::terminate())?),
        ("SIGINT", signal(SignalKind::interrupt())?),
        ("SIGQUIT", signal(SignalKind::quit())?),
    ]))
}

impl Ended {
    /// Waits for one of them, and returns its name.
    async fn recv(&mut self) -> &'static str {
        let [(term, terminate), (int, interrupt), (quit, leave)] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => term,
            _ = interrupt.recv() => int,
            _ = leave.recv() => quit,
        }
    }
}
