// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl reclaim` and `ctl park` against a driver whose every word a test chooses.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use guest_driver::ram::GuestRam;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

use crate::controlled::{BINARY, Controlled, MIB, SOON, given_back, start};

const MEMORY: u64 = 64 * MIB;
/// What a reclaim takes of a guest that says that all of it is available: it keeps half.
const TAKEN: u64 = MEMORY / 2;
const LOOK_EVERY: Duration = Duration::from_millis(10);
const STATISTIC_BYTES: u32 = 10;

/// A guest whose driver does what the test says.
struct Guest {
    driver: Attachment,
    statistics: u16,
}

impl Guest {
    fn attach(one: &Controlled) -> Self {
        let ram = Ram::new(&RamLayout::flat(MEMORY, Backing::Memfd)).unwrap();
        let socket = one.daemon.socket();
        let driver = Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap();
        let statistics = driver.index(BalloonQueue::Stats).unwrap();
        let mut guest = Self { driver, statistics };
        // The device counts from there on: a balloon queue that begins has an empty balloon.
        guest.driver.use_balloon().unwrap();
        guest.send(&[(0, 0), (0, 0), (0, 0)]);
        guest
    }

    fn send(&mut self, values: &[(u16, u64)]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        let at = self.driver.scratch().start();
        self.driver.ram().write(at, &bytes).unwrap();
        let buffer = Buffer::readable(at, STATISTIC_BYTES * u32::try_from(values.len()).unwrap());
        self.driver.ring(self.statistics).unwrap().add_chain(&[buffer]).unwrap();
        self.driver.publish(self.statistics).unwrap();
    }

    /// Answers the next request for statistics.
    fn tells(&mut self, available: u64, oom_kills: u64, major_faults: u64) {
        assert!(self.driver.wait_used(self.statistics, SOON).unwrap().is_some());
        self.send(&[(6, available), (10, oom_kills), (2, major_faults)]);
    }

    /// Answers requests for statistics until the device wants this many bytes in the balloon: the first
    /// request may be of a reclaim that has ended.
    fn is_told_while_telling(&mut self, bytes: u64, available: u64) {
        self.tells(available, 7, 0);
        let asked = Instant::now();
        while u64::from(self.driver.get_config().unwrap().num_pages) * 4096 != bytes {
            assert!(asked.elapsed() < SOON, "not told of {bytes} bytes");
            if self.driver.wait_used(self.statistics, LOOK_EVERY).unwrap().is_some() {
                self.send(&[(6, available), (10, 7), (2, 0)]);
            }
        }
    }

    /// Waits until the device wants this many bytes in the balloon.
    fn is_told(&mut self, bytes: u64) {
        while u64::from(self.driver.get_config().unwrap().num_pages) * 4096 != bytes {
            assert!(self.driver.wait_config_change(SOON).unwrap(), "not told of {bytes} bytes");
        }
    }

    /// Says that this many bytes are in the balloon.
    fn holds(&mut self, bytes: u64) {
        let pages = u32::try_from(bytes / 4096).unwrap();
        self.driver.write_config(4, &pages.to_le_bytes()).unwrap();
        // A message that is answered: the one before it has been served by then.
        assert_eq!(self.driver.get_config().unwrap().actual, pages);
    }
}

fn ctl(one: &Controlled, args: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.args(["ctl", "--control-socket"]).arg(&one.path).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> (Option<i32>, Value) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let errors = String::from_utf8(stderr).unwrap();
    assert_eq!(errors, "");
    (status.code(), serde_json::from_slice(&stdout).unwrap())
}

#[test]
fn reclaim_healthy_guest_squeezed_and_let_go() {
    let one = start(&["--statistics", "--target", "1M"]);
    let mut guest = Guest::attach(&one);
    guest.holds(MIB);
    let client = ctl(&one, &["--json", "reclaim"]);
    guest.tells(MEMORY, 7, 0);
    guest.is_told(TAKEN);
    let status = one.status();
    assert_eq!(
        (&status["target_bytes"], &status["reclaim_target_bytes"]),
        (&MIB.into(), &TAKEN.into())
    );
    let shown = one.shown(&["status"]);
    assert!(shown.contains("squeezes to 32 MiB"), "{shown}");
    // There is one at a time.
    let second = one.control.ask("POST", "/v1/reclaim", "").unwrap();
    assert!(second.status == 409 && second.error().unwrap().contains("another reclaim"));
    // What the operator sets meanwhile holds afterwards.
    one.shown(&["target", "2M"]);
    guest.holds(TAKEN);
    guest.is_told(2 * MIB);
    guest.holds(2 * MIB);
    let (code, answer) = ended(client);
    assert_eq!(code, Some(0), "{answer}");
    assert_eq!(answer["ended_by"], "reached");
    assert_eq!(answer["squeezed_bytes"], TAKEN - MIB);
    assert_eq!((&answer["let_go_confirmed"], &answer["parked"]), (&json!(true), &json!(false)));
    assert!(answer["resident_after_bytes"].is_u64(), "{answer}");
    assert_eq!(one.status()["reclaim_target_bytes"], Value::Null);
}

#[test]
fn reclaim_pressure_lets_go_within_a_second() {
    let one = start(&["--statistics"]);
    for (ooms, faults, pressure) in [(8, 0, "oom_kill"), (7, 300, "major_faults")] {
        let mut guest = Guest::attach(&one);
        let client = ctl(&one, &["--json", "reclaim"]);
        guest.tells(MEMORY, 7, 0);
        guest.is_told(TAKEN);
        guest.holds(TAKEN / 2);
        guest.tells(MEMORY / 2, 7, 0);
        guest.tells(MEMORY / 2, ooms, faults);
        let told = Instant::now();
        guest.is_told(0);
        let took = told.elapsed();
        println!("{pressure}: let go {took:?} after its sample");
        assert!(took < Duration::from_secs(1), "{took:?}");
        guest.holds(0);
        let (code, answer) = ended(client);
        assert_eq!((code, &answer["pressure"]), (Some(5), &json!(pressure)), "{answer}");
        assert_eq!(answer["squeezed_bytes"], TAKEN / 2);
        drop(guest);
        wait_until(SOON, Duration::from_millis(5), || {
            match one.status()["connected"] == json!(false) {
                true => Ok(()),
                false => Err("still connected".to_owned()),
            }
        })
        .unwrap();
    }
}

#[test]
fn reclaim_client_ended_target_is_back() {
    let one = start(&["--statistics", "--target", "1M"]);
    let mut guest = Guest::attach(&one);
    guest.holds(MIB);
    for (command, signal) in [("reclaim", Signal::KILL), ("park", Signal::KILL)] {
        let mut client = ctl(&one, &[command, "--timeout", "3600"]);
        guest.is_told_while_telling(TAKEN, MEMORY);
        guest.holds(TAKEN / 2);
        kill_process(Pid::from_child(&client), signal).unwrap();
        let killed = Instant::now();
        guest.is_told(MIB);
        println!("{command}: let go {:?} after {signal:?}", killed.elapsed());
        guest.holds(MIB);
        client.wait().unwrap();
        assert_eq!(one.status()["paused_by"], json!([]));
    }
    assert!(one.daemon.wait_for_log("its client has gone", SOON).unwrap());
}

#[test]
fn reclaim_interrupted_lets_go_and_reports() {
    let one = start(&["--statistics", "--target", "1M"]);
    let mut guest = Guest::attach(&one);
    guest.holds(MIB);
    let nothing = one.control.ask("DELETE", "/v1/reclaim", "").unwrap();
    assert!(
        nothing.status == 409 && nothing.error().unwrap().contains("no reclaim"),
        "{nothing:?}"
    );
    for (command, signal) in [("reclaim", Signal::INT), ("park", Signal::TERM)] {
        let mut client = ctl(&one, &[command, "--json", "--timeout", "3600"]);
        guest.is_told_while_telling(TAKEN, MEMORY);
        guest.holds(TAKEN / 2);
        let pid = Pid::from_child(&client);
        kill_process(pid, signal).unwrap();
        guest.is_told(MIB);
        guest.holds(MIB);
        let mut said = String::new();
        BufReader::new(client.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("interrupted: the guest is let go"), "{said}");
        let (code, answer) = ended(client);
        let expected = (Some(5), &json!("interrupted"), &json!(true), &json!(false));
        let Value::Object(fields) = &answer else { panic!("{answer}") };
        let field = |name: &str| &fields[name];
        let [why, confirmed, parked] = ["ended_by", "let_go_confirmed", "parked"].map(field);
        assert_eq!((code, why, confirmed, parked), expected, "{answer}");
        assert_eq!(one.status()["paused_by"], json!([]));
    }

    // A client that does not wait for the guest is not held up by it.
    let client = ctl(&one, &["reclaim", "--timeout", "3600"]);
    guest.is_told_while_telling(TAKEN, MEMORY);
    guest.holds(TAKEN / 2);
    let pid = Pid::from_child(&client);
    kill_process(pid, Signal::INT).unwrap();
    guest.is_told(MIB);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(client.wait_with_output().unwrap().status.code(), Some(130));
}

/// The guest deflates by queues that are served: the daemon waits for it.
#[test]
fn reclaim_daemon_ends_guest_is_let_go() {
    let mut one = start(&["--statistics", "--target", "1M"]);
    let mut guest = Guest::attach(&one);
    guest.holds(MIB);
    let client = ctl(&one, &["--json", "park"]);
    guest.tells(MEMORY, 7, 0);
    guest.is_told(TAKEN);
    guest.holds(TAKEN);
    guest.is_told(MIB);
    // It is being let go already; another is in mid-squeeze.
    guest.holds(MIB);
    assert_eq!(ended(client).0, Some(0));
    one.shown(&["unpark"]);
    let client = ctl(&one, &["--json", "park"]);
    guest.tells(MEMORY, 7, 0);
    guest.is_told(TAKEN);
    guest.holds(TAKEN / 2);
    let pid = Pid::from_raw(i32::try_from(one.daemon.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    guest.is_told(MIB);
    guest.holds(MIB);
    let (code, answer) = ended(client);
    assert_eq!((code, &answer["ended_by"]), (Some(5), &json!("stopping")), "{answer}");
    assert_eq!((&answer["let_go_confirmed"], &answer["parked"]), (&json!(true), &json!(false)));
    assert_eq!(one.daemon.wait(SOON).unwrap().unwrap().code(), Some(0));
}

#[test]
fn park_pauses_until_unpark() {
    let one = start(&["--statistics"]);
    let mut guest = Guest::attach(&one);
    let at = MEMORY / 2;
    assert!(given_back(&mut guest.driver, at));
    let client = ctl(&one, &["--json", "park"]);
    guest.tells(MEMORY, 7, 0);
    guest.is_told(TAKEN);
    guest.holds(TAKEN);
    guest.is_told(0);
    guest.holds(0);
    let (code, answer) = ended(client);
    assert_eq!((code, &answer["parked"]), (Some(0), &json!(true)), "{answer}");
    assert_eq!(one.status()["paused_by"], json!(["parked"]));
    assert!(!given_back(&mut guest.driver, at));
    // What another operator paused and resumed is not its.
    assert_eq!(one.shown(&["resume"]), "discarding: no, paused by parked\n");
    let refused = one.control.ask("POST", "/v1/reclaim", "").unwrap();
    assert!(refused.error().unwrap().contains("paused (parked)"), "{refused:?}");
    assert_eq!(one.shown(&["unpark"]), "discarding: yes\n");
    assert!(given_back(&mut guest.driver, at));
}

#[test]
fn reclaim_refused_or_silent_has_its_exit_status() {
    let one = start(&[]);
    let (output, errors) = one.ctl(&["reclaim"]);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("--statistics"), "{errors}");
    let one = start(&["--statistics"]);
    assert_eq!(one.ctl(&["park"]).0.status.code(), Some(1));
    let guest = Guest::attach(&one);
    for body in [r#"{"timeout_seconds":0}"#, r#"{"timeout_seconds":3601}"#, r#"{"keep":1}"#] {
        assert_eq!(one.control.ask("POST", "/v1/reclaim", body).unwrap().status, 400, "{body}");
    }
    let (code, answer) = ended(ctl(&one, &["--json", "reclaim", "--timeout", "1"]));
    assert_eq!((code, &answer["ended_by"]), (Some(3), &json!("silent")), "{answer}");
    drop(guest);
}
