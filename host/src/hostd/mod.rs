// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `hostd`: the one process of a host that knows all daemons.
//!
//! It sleeps until something happens: a socket comes or goes, a client asks, a signal comes.

mod shared;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::http;
use crate::log;
use crate::memory::Memory;
use crate::sockets::{self, Watch};
use shared::Shared;

/// How hostd is started.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) socket: PathBuf,
    pub(crate) metrics_address: Option<SocketAddr>,
    pub(crate) cgroup: Option<PathBuf>,
}

/// Why hostd cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostdError {
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
    let mut watch = Watch::new(&options.dirs).map_err(HostdError::Watch)?;
    let shared = Shared::new(memory);
    let (unix, _file) = socket::listen(&options.socket)?;
    let tcp = match options.metrics_address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let server = http::serve(unix, tcp, shared.clone());
    tokio::pin!(server);
    let find = || shared.found(sockets::find(&options.dirs));
    find();
    log::info(format_args!("listening on {}", options.socket.display()));
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            () = &mut server => {}
            changed = watch.changed() => {
                changed.map_err(HostdError::Watch)?;
                find();
            }
            name = ended.recv() => {
                log::info(format_args!("received {name}, shutting down"));
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
                return Ok(());
            }
        }
    }
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
