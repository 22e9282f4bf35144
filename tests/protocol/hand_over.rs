// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM that runs on while its daemon is killed, ended or replaced, beside a keeper.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::{DaemonProcess, KeptDaemon};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(2);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

/// A keeper with its daemon, and a frontend.
struct Kept {
    daemon: KeptDaemon,
    control: ControlSocket,
    frontend: Option<Attachment>,
}

impl Kept {
    fn start() -> Self {
        Self::start_program(BINARY.as_ref())
    }

    fn start_program(program: &Path) -> Self {
        Self::start_with(program, &[])
    }

    fn start_with(program: &Path, args: &[&str]) -> Self {
        let daemon = KeptDaemon::spawn(program, args).unwrap();
        let control = ControlSocket::new(&daemon.keeper().control_socket(), SOON);
        let mut kept = Self { daemon, control, frontend: None };
        kept.attach();
        kept
    }

    fn attach(&mut self) {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let socket = self.daemon.keeper().socket();
        let frontend = Attachment::connect(&socket, &ram, AttachOptions::default());
        self.frontend = Some(frontend.unwrap());
    }

    fn guest(&mut self) -> &mut Attachment {
        self.frontend.as_mut().unwrap()
    }

    /// Whether the mebibyte at this address is given back when it is reported.
    fn given_back(&mut self, at: u64) -> bool {
        self.guest().given_back(GpaRange::new(Gpa(at), MIB).unwrap()).unwrap()
    }

    fn paused(&self) -> bool {
        self.control.get("/v1/status").unwrap()["paused_by"] == json!(["operator"])
    }
}

#[test]
fn daemon_killed_or_ended_vm_goes_on() {
    let mut kept = Kept::start();
    let mut at = 4 * MIB;
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL, Signal::ABORT, Signal::TERM] {
        assert!(kept.given_back(at), "before {signal:?}");
        kept.daemon.replace(signal).unwrap();
        at += MIB;
        assert!(kept.given_back(at), "after {signal:?}\n{}", kept.daemon.keeper().log());
        let config = kept.guest().get_config().unwrap();
        assert_eq!(config.num_pages, 0);
    }
    let log = kept.daemon.keeper().log();
    assert_eq!(log.matches("frontend connected").count(), 1, "{log}");
    // SIGTERM is none of these: it hands over.
    assert_eq!(log.matches("starting another").count(), 3, "{log}");
}

#[test]
fn report_that_no_daemon_saw_is_served_by_the_next() {
    let mut kept = Kept::start();
    let queue = kept.guest().reporting_queue().unwrap();
    assert!(kept.given_back(4 * MIB));
    // It has the chain and never takes it.
    kill_process(kept.daemon.daemon().unwrap(), Signal::STOP).unwrap();
    let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
    kept.guest().ram().write_pattern(range, 1).unwrap();
    let report = Buffer::writable(Gpa(8 * MIB), 1 << 20);
    kept.guest().ring(queue).unwrap().add_chain(&[report]).unwrap();
    kept.guest().publish(queue).unwrap();
    kept.daemon.replace(Signal::KILL).unwrap();
    assert!(kept.guest().wait_used(queue, SOON).unwrap().is_some());
    assert!(kept.guest().ram().is_zero(range).unwrap(), "it was not discarded");
    assert!(kept.given_back(12 * MIB));
}

#[test]
fn pause_pins_and_target_outlive_the_daemon() {
    let mut kept = Kept::start();
    let set = |method, path, body: Value| {
        kept.control.done(method, path, &body.to_string()).unwrap();
    };
    set("PUT", "/v1/target", json!({"bytes": 8 * MIB}));
    set("PUT", "/v1/pins", json!({"address": 6 * MIB, "bytes": MIB}));
    kept.control.done("POST", "/v1/pause", "").unwrap();
    for signal in [Signal::KILL, Signal::TERM] {
        kept.daemon.replace(signal).unwrap();
        assert!(!kept.given_back(4 * MIB), "paused, after {signal:?}");
    }
    assert!(kept.paused());
    assert_eq!(u64::from(kept.guest().get_config().unwrap().num_pages), 8 * MIB / 4096);
    kept.control.done("POST", "/v1/resume", "").unwrap();
    kept.daemon.replace(Signal::KILL).unwrap();
    assert!(!kept.paused());
    assert!(kept.given_back(4 * MIB));
    assert!(!kept.given_back(6 * MIB), "pinned");
}

/// A reclaim squeezes to more than the target, and ends with its daemon.
#[test]
fn balloon_above_target_driver_is_told_again() {
    let mut kept = Kept::start();
    // Nothing is in a balloon whose queues have just begun.
    kept.guest().use_balloon().unwrap();
    let pages = u32::try_from(8 * MIB / 4096).unwrap();
    kept.guest().write_config(4, &pages.to_le_bytes()).unwrap();
    assert_eq!(kept.guest().get_config().unwrap().actual, pages);
    for signal in [Signal::KILL, Signal::TERM] {
        kept.daemon.replace(signal).unwrap();
        assert!(kept.guest().wait_config_change(SOON).unwrap(), "not told after {signal:?}");
        assert_eq!(kept.guest().get_config().unwrap().num_pages, 0);
    }
}

/// A VM that is saved while its daemon is replaced has the contents that it was parked with.
#[test]
fn park_outlives_the_daemon() {
    let mut kept = Kept::start_with(BINARY.as_ref(), &["--statistics"]);
    kept.control.done("POST", "/v1/park", r#"{"timeout_seconds": 1}"#).unwrap();
    kept.daemon.replace(Signal::KILL).unwrap();
    assert!(!kept.given_back(4 * MIB));
    kept.control.done("POST", "/v1/unpark", "").unwrap();
    kept.daemon.replace(Signal::KILL).unwrap();
    assert!(kept.given_back(5 * MIB));
}

#[test]
fn what_a_frontend_left_is_not_kept() {
    let mut kept = Kept::start();
    assert!(kept.given_back(4 * MIB));
    kept.frontend = None;
    // As many as a keeper has whose daemon has met no frontend.
    let idle = KeptDaemon::spawn(BINARY.as_ref(), [""; 0]).unwrap();
    let held = |daemon: &KeptDaemon| daemon.keeper().fd_count().unwrap();
    wait_until(SOON, EVERY, || {
        let (now, idle) = (held(&kept.daemon), held(&idle));
        if now == idle {
            Ok(())
        } else {
            Err(format!("{now} descriptors, {idle} without a frontend"))
        }
    })
    .unwrap();
    kill_process(kept.daemon.daemon().unwrap(), Signal::KILL).unwrap();
    kept.attach();
    assert!(kept.given_back(4 * MIB));
    kept.daemon.replace(Signal::KILL).unwrap();
    assert!(kept.given_back(5 * MIB));
}

#[test]
fn paused_from_the_start_outlives_the_daemon() {
    let daemon = KeptDaemon::spawn(BINARY.as_ref(), ["--paused"]).unwrap();
    let first = daemon.daemon().unwrap();
    kill_process(first, Signal::KILL).unwrap();
    wait_until(SOON, EVERY, || match daemon.daemon() {
        Ok(now) if now != first => Ok(()),
        now => Err(format!("{now:?}")),
    })
    .unwrap();
    let control = ControlSocket::new(&daemon.keeper().control_socket(), SOON);
    let status = control.get("/v1/status").unwrap();
    assert_eq!(status["paused_by"], json!(["operator"]));
    assert_ne!(status["pid"], first.as_raw_pid());
}

/// As a service manager ends a group of processes.
#[test]
fn keeper_and_daemon_ended_together_leave_nothing() {
    for last in [Signal::TERM, Signal::INT] {
        let mut kept = Kept::start();
        kept.frontend = None;
        let keeper = kept.daemon.keeper();
        let sockets = [keeper.socket(), keeper.control_socket()];
        let pid = Pid::from_raw(keeper.pid().try_into().unwrap()).unwrap();
        kill_process(kept.daemon.daemon().unwrap(), Signal::TERM).unwrap();
        kill_process(pid, last).unwrap();
        kept.daemon.end().unwrap();
        assert!(!sockets.iter().any(|socket| socket.exists()), "{last:?}");
    }
}

#[test]
fn daemon_without_keeper_serves_on_and_ends_for_good() {
    let mut kept = Kept::start();
    assert!(kept.given_back(4 * MIB));
    let daemon = kept.daemon.daemon().unwrap();
    let ended = pidfd_open(daemon, PidfdFlags::empty()).unwrap();
    let socket = kept.daemon.keeper().socket();
    let keeper = Pid::from_raw(kept.daemon.keeper().pid().try_into().unwrap()).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    assert!(kept.given_back(5 * MIB));
    let refused = kept.control.ask("POST", "/v1/upgrade", "").unwrap();
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(kept.given_back(6 * MIB));
    kill_process(daemon, Signal::TERM).unwrap();
    poll(&mut [PollFd::new(&ended, PollFlags::IN)], None).unwrap();
    assert!(!socket.exists(), "{}", kept.daemon.keeper().log());
}

/// Settings that replace each other are not told twice, and no queue starts that was stopped.
#[test]
fn stopped_queue_stays_stopped_and_starts_again() {
    let mut kept = Kept::start();
    assert!(kept.given_back(4 * MIB));
    for _ in 0..40 {
        let bases = kept.guest().stop().unwrap();
        for (queue, base) in bases {
            kept.guest().start_queue(queue, base).unwrap();
        }
    }
    let bases = kept.guest().stop().unwrap();
    kept.daemon.replace(Signal::KILL).unwrap();
    let running = |kept: &Kept| {
        let status = kept.control.get("/v1/status").unwrap();
        let queues = status["queues"].as_array().unwrap().clone();
        queues.iter().filter(|queue| queue["runs"] == true).count()
    };
    assert_eq!(running(&kept), 0);
    for (queue, base) in bases {
        kept.guest().start_queue(queue, base).unwrap();
    }
    assert!(kept.given_back(5 * MIB), "{}", kept.daemon.keeper().log());
    kept.daemon.replace(Signal::TERM).unwrap();
    assert!(kept.given_back(6 * MIB) && running(&kept) > 0);
}

/// By another process: this one's children would hold the file open for writing.
fn copy(to: &Path) {
    assert!(Command::new("cp").arg(BINARY).arg(to).status().unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test"]
fn upgrade_goes_on_with_the_program_at_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vhost-device-balloon");
    copy(&program);
    let mut kept = Kept::start_program(&program);
    let executed = |kept: &Kept| {
        let path = format!("/proc/{}/exe", kept.daemon.daemon().unwrap().as_raw_pid());
        fs::metadata(path).unwrap().ino()
    };
    let put = |write: &dyn Fn(&Path)| {
        let new = dir.path().join("new");
        write(&new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &program).unwrap();
    };
    let upgrade = |kept: &Kept| {
        let socket = kept.daemon.keeper().control_socket();
        let mut command = Command::new(BINARY);
        let output = command.args(["ctl", "--control-socket"]).arg(socket).arg("upgrade").output();
        let output = output.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let first = executed(&kept);
    assert!(kept.given_back(4 * MIB));

    put(&copy);
    let (code, said) = upgrade(&kept);
    assert!(code == Some(0) && said.contains("→"), "{said}\n{}", kept.daemon.keeper().log());
    let second = executed(&kept);
    assert_ne!(second, first);
    assert!(kept.given_back(5 * MIB));

    // One that says no.
    let daemon = kept.daemon.daemon().unwrap();
    put(&|new| fs::write(new, "#!/bin/sh\necho 'not mine' >&2; exit 1\n").unwrap());
    let (code, said) = upgrade(&kept);
    assert!(code == Some(1) && said.contains("not mine"), "{said}");
    assert_eq!(kept.daemon.daemon().unwrap(), daemon);

    // One that says yes and does not serve.
    put(&|new| fs::write(new, "#!/bin/sh\n[ \"$1\" = --check-hand-over ]\n").unwrap());
    let (code, said) = upgrade(&kept);
    assert!(
        code == Some(1) && said.contains("did not serve"),
        "{said}\n{}",
        kept.daemon.keeper().log()
    );
    assert_eq!(executed(&kept), second, "it went back to the last one that served");
    assert!(kept.given_back(6 * MIB));
}

#[test]
fn upgrade_without_a_store_is_refused() {
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), [""; 0]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let refused = control.ask("POST", "/v1/upgrade", "").unwrap();
    assert_eq!(refused.status, 409);
    assert!(refused.error().unwrap().contains("--keeper"));
}

#[test]
fn keeper_that_is_ended_ends_its_daemon() {
    let mut kept = Kept::start();
    kept.frontend = None;
    let daemon = kept.daemon.daemon().unwrap();
    let keeper = kept.daemon.keeper();
    let sockets = [keeper.socket(), keeper.control_socket()];
    kept.daemon.end().unwrap();
    assert!(!sockets.iter().any(|socket| socket.exists()));
    assert!(kill_process(daemon, Signal::CONT).is_err(), "the daemon is gone");
}

#[test]
fn keeper_passes_on_what_is_no_end() {
    let mut kept = Kept::start();
    let daemon = kept.daemon.daemon().unwrap();
    let keeper = Pid::from_raw(kept.daemon.keeper().pid().try_into().unwrap()).unwrap();
    kill_process(keeper, Signal::HUP).unwrap();
    kill_process(keeper, Signal::USR1).unwrap();
    assert!(kept.daemon.keeper().wait_for_log("SIGUSR1: ", SOON).unwrap());
    assert_eq!(kept.daemon.daemon().unwrap(), daemon);
    assert!(kept.given_back(4 * MIB));
}

#[test]
fn daemon_that_cannot_start_ends_the_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "no socket").unwrap();
    let output = Command::new(BINARY).args(["--keeper", "--socket-path"]).arg(&path).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("exists and is not a socket"), "{said}");
    assert!(!said.contains("starting another"), "{said}");
}

/// The state as a daemon of another version leaves it.
#[test]
fn state_of_another_version_is_refused_by_name() {
    let checked = |text: &str| {
        let record: File = tempfile::tempfile().unwrap();
        record.set_len(2 << 20).unwrap();
        record.write_all_at(text.as_bytes(), 64 << 10).unwrap();
        record.write_all_at(&((text.len() as u64) << 1).to_ne_bytes(), 0).unwrap();
        let output = Command::new(BINARY)
            .arg("--check-hand-over")
            .stdin(Stdio::from(record))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let newer = r#"{"format":"vhost-device-balloon hand-over","version":7,"more":true}"#;
    let (code, said) = checked(newer);
    assert_eq!(code, Some(1));
    assert!(said.contains("state of version 7, and this one takes version 1"), "{said}");
    assert_eq!(checked("").0, Some(1));
    let (code, said) = checked("{}");
    assert!(code == Some(1) && said.contains("damaged"), "{said}");
}
