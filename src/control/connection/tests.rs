// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections by hand: a clock that stands, and a client on the other end.

use super::*;
use crate::device::DeviceOptions;
use crate::discard::{Cause, MemoryOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn pair() -> (UnixStream, Connection, Instant) {
    let (client, stream) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let now = Instant::now();
    (client, Connection::new(Stream::Unix(stream), now), now)
}

/// Goes on with `connection`; answers with the path that was asked for.
fn go_on(connection: &mut Connection, now: Instant) -> (Step, Option<String>) {
    let mut asked = None;
    let step = connection.advance(now, |request| {
        asked = Some(request.path.to_owned());
        Response::json(&request.path).into()
    });
    (step, asked)
}

fn received(client: &mut UnixStream) -> String {
    let mut text = String::new();
    let _ = client.read_to_string(&mut text);
    text
}

const WAIT: Step = Step::Wait(EventSet::IN);

#[test]
fn a_request_may_come_byte_by_byte_and_the_clock_runs() {
    let (mut client, mut connection, now) = pair();
    for byte in b"GET /a HTTP/1.1\r\nHost: x\r\n\r" {
        client.write_all(&[*byte]).unwrap();
        assert_eq!(go_on(&mut connection, now + LINGER), (WAIT, None));
        assert_eq!(connection.deadline(), now + PATIENCE);
    }
    // Woken for nothing.
    assert_eq!(go_on(&mut connection, now), (WAIT, None));
    client.write_all(b"\n").unwrap();
    let later = now + LINGER;
    assert_eq!(go_on(&mut connection, later), (WAIT, Some("/a".to_owned())));
    assert_eq!(connection.deadline(), later + PATIENCE);
    assert!(received(&mut client).ends_with("\r\n\r\n\"/a\"\n"));
}

#[test]
fn of_many_requests_at_once_each_waits_for_its_turn() {
    let (mut client, mut connection, now) = pair();
    for path in ["/1", "/2", "/3"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
    }
    // What ends its part has not hung up.
    client.shutdown(Shutdown::Write).unwrap();
    let again = Step::Wait(EventSet::OUT);
    for (path, step) in [("/1", again), ("/2", again), ("/3", WAIT)] {
        assert_eq!(go_on(&mut connection, now), (step, Some(path.to_owned())));
    }
    assert_eq!(go_on(&mut connection, now), (Step::Close, None));
    assert_eq!(received(&mut client).matches("200 OK").count(), 3);
}

#[test]
fn malformed_request_is_answered_and_its_rest_dropped() {
    let (mut client, mut connection, now) = pair();
    client.write_all(b"\0\0\0").unwrap();
    assert_eq!(go_on(&mut connection, now), (WAIT, None));
    assert_eq!(connection.deadline(), now + LINGER);
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(go_on(&mut connection, now), (WAIT, None));
    let text = received(&mut client);
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("Connection: close"), "{text}");
    drop(client);
    assert_eq!(go_on(&mut connection, now), (Step::Close, None));
}

#[test]
fn an_answer_waits_for_a_client_that_does_not_read() {
    let (mut client, mut connection, now) = pair();
    client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let long = "x".repeat(1 << 20);
    let step = connection.advance(now, |_| Response::json(&long).into());
    assert_eq!(step, Step::Wait(EventSet::OUT));
    // Nobody is asked a second time.
    assert_eq!(go_on(&mut connection, now), (Step::Wait(EventSet::OUT), None));
    let mut text = String::new();
    while connection.phase != Phase::Asking {
        text += &received(&mut client);
        go_on(&mut connection, now);
    }
    text += &received(&mut client);
    assert!(text.contains(&long));
    drop(client);
    assert_eq!(go_on(&mut connection, now), (Step::Close, None));
}

#[test]
fn a_client_that_goes_in_the_middle_is_gone() {
    let (mut client, mut connection, now) = pair();
    client.write_all(b"GET /a HT").unwrap();
    assert_eq!(go_on(&mut connection, now), (WAIT, None));
    drop(client);
    assert_eq!(go_on(&mut connection, now), (Step::Close, None));
}

fn state() -> State {
    State::new(DeviceOptions::default(), MemoryOptions::default())
}

/// Asks for what is answered when nothing is paused, or after a second.
fn wait_for_resume(connection: &mut Connection, now: Instant) -> Step {
    connection.advance(now, |_| {
        Reply::Later(Later::new(
            now + LINGER,
            |state| !state.inhibit.holds(Cause::Operator),
            |_, resumed| Response::json(&resumed),
        ))
    })
}

const NOTHING: Step = Step::Wait(EventSet::empty());

#[test]
fn later_answer_holds_pipelined_requests_back() {
    let ((mut client, mut connection, now), state) = (pair(), state());
    let _ = state.inhibit.forbid(Cause::Operator);
    client.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // What ends its part has not hung up.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(go_on(&mut connection, now), (NOTHING, None));
    assert_eq!(connection.poll(now, &state), Some(NOTHING));
    assert_eq!(connection.activity().0, Activity::Waiting);
    state.inhibit.lift(Cause::Operator);
    assert_eq!(connection.poll(now, &state), Some(WAIT));
    assert_eq!(connection.poll(now, &state), None);
    assert_eq!(go_on(&mut connection, now), (WAIT, Some("/2".to_owned())));
    let text = received(&mut client);
    assert!(text.find("true\n").unwrap() < text.find("\"/2\"").unwrap(), "{text}");
}

#[test]
fn later_answer_comes_at_its_deadline() {
    let ((mut client, mut connection, now), state) = (pair(), state());
    let _ = state.inhibit.forbid(Cause::Operator);
    client.write_all(b"HEAD /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
    assert_eq!(connection.deadline(), now + LINGER);
    assert_eq!(connection.poll(now + LINGER, &state), Some(WAIT));
    let text = received(&mut client);
    let length = format!("Content-Length: {}\r\n", "false\n".len());
    assert!(text.contains(&length) && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn client_that_hangs_up_is_not_waited_for() {
    let ((mut client, mut connection, now), state) = (pair(), state());
    let _ = state.inhibit.forbid(Cause::Operator);
    client.write_all(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(wait_for_resume(&mut connection, now), NOTHING);
    drop(client);
    assert_eq!(go_on(&mut connection, now), (Step::Close, None));
    assert_eq!(connection.poll(now, &state), Some(Step::Close));
}

#[test]
fn last_request_of_a_connection_is_answered_so() {
    let (mut client, mut connection, now) = pair();
    for request in 1..=MOST_REQUESTS {
        assert_eq!(
            connection.activity().0,
            [Activity::Idle, Activity::Fresh][usize::from(request == 1)]
        );
        client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(go_on(&mut connection, now).1, Some("/a".to_owned()));
        let closes = received(&mut client).contains("Connection: close");
        assert_eq!(closes, request == MOST_REQUESTS);
    }
    assert_eq!(connection.activity().0, Activity::Lingering);
    let (mut client, mut connection, now) = pair();
    connection.end_soon();
    client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    go_on(&mut connection, now);
    assert!(received(&mut client).contains("Connection: close"));
}
