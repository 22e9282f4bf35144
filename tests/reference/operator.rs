// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator, and clients of the control socket that behave badly.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use vmm_integration::control::{Answer, ControlSocket};

use crate::guest::{Guest, TIMEOUT};
use crate::memory::{PAGE, address};
use crate::model::{Client, Hinting, Home, PIN_PAGES, Reference};
use crate::{calls, clock};

const STATUS: &str = "GET /v1/status HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
const PARK: &str = "POST /v1/park HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
/// When the daemon lets a client in for which it had no descriptor.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often the daemon looks at a guest from which it reclaims.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Clients of one daemon.
pub(crate) struct Operator {
    control: ControlSocket,
    silent: Vec<UnixStream>,
}

impl Operator {
    pub(crate) fn new(control: &Path) -> Self {
        Self { control: ControlSocket::new(control, TIMEOUT), silent: Vec::new() }
    }

    /// Asks; whether it was done. All that is refused here is refused for what holds at the moment.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> bool {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.control.ask(method, path, &body).unwrap();
        assert!(matches!(answer.status, 200 | 404 | 409), "{method} {path} {body}: {answer:?}");
        answer.status == 200
    }

    pub(crate) fn pin(&self, method: &str, page: usize) -> bool {
        let bytes = PIN_PAGES * PAGE;
        self.ask(method, "/v1/pins", &json!({ "address": address(page), "bytes": bytes }))
    }

    /// Parks the guest, which says what it has when it is asked; whether it was done.
    pub(crate) fn park(&self, guest: &mut Guest, home: Home) -> bool {
        let mut stream = self.control.connect().unwrap();
        stream.write_all(PARK.as_bytes()).unwrap();
        let until = Instant::now() + TIMEOUT;
        loop {
            if is_answered(&stream) {
                break;
            }
            if guest.is_asked_for_statistics() {
                guest.give_statistics();
            }
            if home == Home::Here && clock::is_due(LOOK_EVERY) {
                clock::advance(LOOK_EVERY);
            }
            assert!(Instant::now() < until, "the guest is not parked");
            std::thread::yield_now();
        }
        let answer = answer(stream);
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        answer.status == 200
    }

    /// The event loop has come round: what an answer has set holds.
    pub(crate) fn settle(&self) {
        self.control.get("/v1/target").unwrap();
    }

    pub(crate) fn look(&self, reference: &Reference) {
        compare(&self.control.get("/v1/status").unwrap(), reference);
    }

    pub(crate) fn client(&mut self, client: Client, reference: &Reference) {
        let mut stream = self.control.connect().unwrap();
        match client {
            Client::InPieces(bytes) => {
                for piece in STATUS.as_bytes().chunks(bytes) {
                    stream.write_all(piece).unwrap();
                }
                compare(&answer(stream).json().unwrap(), reference);
            }
            Client::HangsUp => stream.write_all(&STATUS.as_bytes()[..STATUS.len() / 2]).unwrap(),
            Client::TakesNoAnswer => stream.write_all(STATUS.as_bytes()).unwrap(),
            Client::Silent => self.silent.push(stream),
            Client::ComesToNoDescriptor => {
                // The one that has come may be in.
                drop(stream);
                self.settle();
                calls::refuse_descriptor();
                let mut stream = self.control.connect().unwrap();
                stream.write_all(STATUS.as_bytes()).unwrap();
                calls::wait_for_no_descriptor();
                // The daemon sets its timer after that.
                let until = Instant::now() + TIMEOUT;
                while !is_answered(&stream) {
                    if clock::is_due(RETRY_AFTER) {
                        clock::advance(RETRY_AFTER);
                    }
                    assert!(Instant::now() < until, "a client is not let in");
                    std::thread::yield_now();
                }
                compare(&answer(stream).json().unwrap(), reference);
            }
        }
    }
}

fn is_answered(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap() > 0
}

fn answer(mut stream: UnixStream) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    Answer::parse(&text).unwrap()
}

/// What the daemon says of itself is what the reference knows.
fn compare(status: &Value, reference: &Reference) {
    let paused_by = [
        ("operator", reference.paused),
        ("migration", reference.migrating),
        ("parked", reference.parked),
    ];
    let paused_by: Vec<_> =
        paused_by.iter().filter(|(_, holds)| *holds).map(|(by, _)| by).collect();
    assert_eq!(status["paused_by"], json!(paused_by));
    let mut pins: Vec<_> =
        reference.pins.iter().map(|(page, times)| (address(*page), *times)).collect();
    pins.sort_unstable();
    let pins = pins.iter().map(
        |(address, times)| json!({ "address": address, "bytes": PIN_PAGES * PAGE, "times": times }),
    );
    assert_eq!(status["pins"], json!(pins.collect::<Vec<_>>()));
    let hinting = match reference.hinting {
        Hinting::Round { .. } => "running",
        Hinting::Done | Hinting::Stop => "over",
    };
    let state = match status["hinting"]["state"].as_str().unwrap() {
        "running" => "running",
        _ => "over",
    };
    assert_eq!(state, hinting);
    assert_eq!(status["target_bytes"], reference.target);
    assert_eq!(status["target_refused"].is_null(), reference.target_read() == reference.target);
    assert_eq!(status["memory"]["bytes"], reference.memory_bytes());
    assert_eq!(status["statistics_interval_seconds"], f64::from(reference.interval));
}
