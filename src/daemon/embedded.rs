// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon inside another program.

use std::io;
use std::sync::Arc;

use super::error::{DaemonError, Failure, resources};
use super::process::{Place, Process};
use super::serve::serve;
use crate::cli::Config;
use crate::wake::Wake;

/// A daemon in a thread of another program, such as a VMM or a manager of many VMs.
///
/// It has the sockets, the queues and the control of the program, and changes little of the
/// process: no handler and no mask of a signal, no limit, no variable, and it never exits it. That
/// leaves to the program:
///
/// - `SIGPIPE` must be ignored, as Rust's own start-up does.
/// - `SIGBUS` is what an access to guest memory raises whose file was truncated by the VMM, or whose
///   file system is full. Its default ends the process.
/// - `RLIMIT_NOFILE`: each region of guest memory, queue and client needs a descriptor.
/// - Records of `log` go to the program's logger.
/// - `PUT /v1/log-level` of its control socket sets the level of the whole program, and the metrics
///   `process_…` are the program's.
/// - The mask of new files (`umask`) is 0 for a moment when a socket is made: start daemons before
///   threads that make files.
/// - The sandbox (`--sandbox`) has no effect: it would confine the whole program.
/// - Nothing hands over to a next daemon (`--keeper`, `ctl upgrade`).
///
/// # Examples
/// A thread that serves VMMs until it is stopped:
/// ```standalone_crate
/// use std::thread;
///
/// use vhost_device_balloon::{Config, Embedded};
///
/// let path = std::env::temp_dir().join("vm1.sock");
/// let args = ["vhost-device-balloon", "--socket-path", path.to_str().unwrap()];
/// let daemon = Embedded::new(Config::from_args(args)?)?;
/// let stop = daemon.stop_handle();
/// let serving = thread::spawn(move || daemon.run());
/// // … until the VM has ended:
/// stop.stop()?;
/// serving.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Embedded {
    config: Config,
    place: Place,
    end: Arc<Wake>,
}

/// Stops an [`Embedded`] daemon, from any thread.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Wake>);

impl Embedded {
    /// Takes over the socket of `--fd`, if that is what `config` names: it must be open, and is the
    /// daemon's from now on.
    ///
    /// # Errors
    /// [`DaemonError`] if it is no socket for frontends, or no descriptor is left.
    pub fn new(config: Config) -> Result<Self, DaemonError> {
        let place = Place::take(&config).map_err(Failure::from)?;
        let end = Wake::new().map_err(resources("create an eventfd"))?;
        Ok(Self { config, place, end: Arc::new(end) })
    }

    /// Returns what stops it. Stopped before it runs, it ends at once.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.end))
    }

    /// Serves VMMs, one after another, until it is stopped; on a connected socket, until its VMM
    /// disconnects. No session is left and the files of its sockets are gone when this returns; the last
    /// of its threads are ending.
    ///
    /// # Errors
    /// [`DaemonError`] if the daemon cannot start, its event loop fails, the session of a connected
    /// socket fails, or the threads of a session that is over wait for a file of its VMM and cannot
    /// be ended: they stay. Nothing else that a VMM does to a listening daemon is an error here.
    pub fn run(self) -> Result<(), DaemonError> {
        serve(&self.config, self.place, Process::of_embedder(), self.end)?;
        Ok(())
    }
}

impl StopHandle {
    /// Has the daemon hang up and [`Embedded::run`] return: within milliseconds as a rule, after some
    /// seconds where a guest that is being squeezed is let go first.
    ///
    /// # Errors
    /// What the kernel says of the event.
    pub fn stop(&self) -> io::Result<()> {
        self.0.signal()
    }
}
