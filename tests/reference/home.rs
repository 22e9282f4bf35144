// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the daemon runs: in this process, or under a keeper.

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::process::Signal;
use tempfile::TempDir;
use vhost_device_balloon::{Config, DaemonError, Embedded, StopHandle};
use vmm_integration::daemon::KeptDaemon;

use crate::model::Home;
use crate::{calls, clock};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
/// All that can be offered.
const ARGS: [&str; 4] = [
    "--statistics",
    "--free-page-hints",
    "--experimental-init-reported",
    "--experimental-init-on-inflate",
];

/// A daemon that runs.
pub(crate) enum Running {
    Here(Here),
    Kept(KeptDaemon),
}

impl Running {
    pub(crate) fn start(home: Home) -> Self {
        match home {
            Home::Here => Self::Here(Here::start()),
            Home::Kept => Self::Kept(KeptDaemon::spawn(Path::new(BINARY), ARGS).unwrap()),
        }
    }

    /// The socket for VMMs.
    pub(crate) fn socket(&self) -> PathBuf {
        match self {
            Self::Here(here) => here.dir.path().join("s"),
            Self::Kept(kept) => kept.keeper().socket(),
        }
    }

    pub(crate) fn control(&self) -> PathBuf {
        match self {
            Self::Here(here) => here.dir.path().join("c"),
            Self::Kept(kept) => kept.keeper().control_socket(),
        }
    }

    /// Has the next daemon take its place; says whether it goes on with the VMM.
    pub(crate) fn replace(&mut self) -> bool {
        match self {
            Self::Here(here) => {
                here.stop();
                *here = Here::start();
                false
            }
            Self::Kept(kept) => {
                kept.replace(Signal::KILL).unwrap();
                true
            }
        }
    }
}

/// A daemon in threads of this process.
pub(crate) struct Here {
    dir: TempDir,
    stop: StopHandle,
    serving: Option<JoinHandle<Result<(), DaemonError>>>,
}

impl Here {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // It listens from now on, so nothing needs to wait for the daemon.
        let listener = UnixListener::bind(dir.path().join("s")).unwrap().into_raw_fd();
        let (listener, control) = (listener.to_string(), dir.path().join("c"));
        let own = ["vhost-device-balloon", "--fd", &listener, "--control-socket"];
        let own = own.into_iter().chain([control.to_str().unwrap()]);
        let daemon = Embedded::new(Config::from_args(own.chain(ARGS)).unwrap()).unwrap();
        let stop = daemon.stop_handle();
        let serving = thread::spawn(move || {
            calls::become_daemon();
            daemon.run()
        });
        Self { dir, stop, serving: Some(serving) }
    }

    fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            self.stop.stop().unwrap();
            serving.join().unwrap().unwrap();
            clock::forget_timers();
        }
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        calls::set_weather(calls::Weather::Fair);
        // One that cannot end was a failure before.
        if !thread::panicking() {
            self.stop();
        } else if let Some(serving) = self.serving.take() {
            let _ = self.stop.stop();
            let _ = serving.join();
            clock::forget_timers();
        }
        let _ = fs::remove_dir_all(self.dir.path());
    }
}
