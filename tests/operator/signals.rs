// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals: none ends the daemon that is not meant to.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;

const SOON: Duration = Duration::from_secs(20);

fn spawn() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn_controlled(binary, [] as [&str; 0]).unwrap()
}

fn send(daemon: &DaemonProcess, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(daemon.pid()).unwrap();
    // SAFETY: the process is a child of this one that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn signals_without_a_meaning_have_no_effect() {
    let mut daemon = spawn();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let without = [
        libc::SIGHUP,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGPOLL,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGCHLD,
        libc::SIGCONT,
    ];
    for signal in without.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        send(&daemon, signal);
        assert!(control.get("/v1/status").is_ok(), "signal {signal}: {}", daemon.log());
    }
    let ended = daemon.terminate(SOON).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
}

#[test]
fn sighup_is_told_and_sigusr1_logs_what_was_counted() {
    let daemon = spawn();
    send(&daemon, libc::SIGHUP);
    assert!(daemon.wait_for_log("ignored SIGHUP", SOON).unwrap());
    send(&daemon, libc::SIGUSR1);
    assert!(daemon.wait_for_log("SIGUSR1: chains=0", SOON).unwrap(), "{}", daemon.log());
}

#[test]
fn signals_that_end_it_leave_no_socket() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let mut daemon = spawn();
        send(&daemon, signal);
        let status = daemon.wait(SOON).unwrap().expect("it ends");
        assert_eq!(status.code(), Some(0), "signal {signal}: {}", daemon.log());
        assert!(!daemon.socket().exists() && !daemon.control_socket().exists());
    }
}
