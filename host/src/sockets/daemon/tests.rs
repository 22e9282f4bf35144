// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tempfile::TempDir;

use super::*;

/// Longer than an answer takes, and short enough to wait for its end.
const SHORT: Duration = Duration::from_millis(200);

/// A daemon that treats each connection like this, once it has been asked.
fn daemon(conduct: fn(&mut UnixStream)) -> (TempDir, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ctl");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            conduct(&mut stream);
        }
    });
    (dir, Daemon::new(path))
}

fn ask(daemon: &Daemon) -> Result<Bytes, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(daemon.ask("GET", "/v1/status", None))
}

fn say(stream: &mut UnixStream, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// Says the same without end, as long as there is a listener.
fn flood(stream: &mut UnixStream, head: &str, line: &str) {
    let mut text = head.to_owned();
    while stream.write_all(text.as_bytes()).is_ok() {
        text = line.repeat(100);
    }
}

#[test]
fn answer_is_read() {
    let (_dir, daemon) =
        daemon(|stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    assert_eq!(ask(&daemon).unwrap(), "ok");
}

#[test]
fn refusal_says_why() {
    let (_dir, daemon) = daemon(|stream| {
        say(stream, "HTTP/1.1 409 Conflict\r\nContent-Length: 14\r\n\r\n{\"error\":\"no\"}");
    });
    let error = ask(&daemon).unwrap_err();
    assert!(matches!(error, AskError::Refused { status: 409, .. }), "{error:?}");
    assert_eq!(error.to_string(), "no");
}

#[test]
fn refusal_that_is_no_text_for_people_becomes_one() {
    let (_dir, daemon) = daemon(|stream| {
        let body = format!("{{\"error\":\"a\\u001b[2Jb\\n{}\"}}", "x".repeat(10_000));
        let head = format!("HTTP/1.1 409 Conflict\r\nContent-Length: {}\r\n\r\n", body.len());
        say(stream, &(head + &body));
    });
    let text = ask(&daemon).unwrap_err().to_string();
    assert!(text.starts_with("a [2Jb xx") && text.len() == MOST_SAID, "{text}");
}

#[test]
fn nobody_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ctl");
    assert!(matches!(ask(&Daemon::new(&path)), Err(AskError::NoDaemon(_))));
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(ask(&Daemon::new(&path)), Err(AskError::NoDaemon(_))));
}

#[test]
fn garbage_is_no_answer() {
    let conducts: [fn(&mut UnixStream); 5] = [
        |_| {},
        |stream| say(stream, "\u{0}\u{1}\u{2}"),
        |stream| say(stream, "SSH-2.0-OpenSSH_10.0\r\n"),
        |stream| say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        |stream| flood(stream, "HTTP/1.1 200 OK\r\n", "A: a\r\n"),
    ];
    for (at, conduct) in conducts.into_iter().enumerate() {
        let (_dir, daemon) = daemon(conduct);
        let error = ask(&daemon).unwrap_err();
        assert!(matches!(error, AskError::NotAnAnswer(_)), "{at}: {error:?}");
    }
}

#[test]
fn endless_answer_is_cut_off() {
    let conducts: [fn(&mut UnixStream); 2] = [
        |stream| flood(stream, "HTTP/1.1 200 OK\r\n\r\n", "aaaa"),
        |stream| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
            flood(stream, &head, "aaaa");
        },
    ];
    for conduct in conducts {
        let (_dir, daemon) = daemon(conduct);
        let error = ask(&daemon).unwrap_err();
        assert!(matches!(error, AskError::TooLong), "{error:?}");
    }
}

#[test]
fn silence_ends_with_the_limit() {
    let silent: [fn(&mut UnixStream); 3] = [
        |stream| drop(stream.read(&mut [0; 1])),
        // Says too little, and waits.
        |stream| {
            say(stream, "HTTP/1.1 200 OK\r\nContent-");
            drop(stream.read(&mut [0; 1]));
        },
        // Goes on slowly without end.
        |stream| {
            say(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            while stream.write_all(b"a").is_ok() {
                thread::sleep(SHORT / 20);
            }
        },
    ];
    for conduct in silent {
        let (_dir, daemon) = daemon(conduct);
        let error = ask(&daemon.within(SHORT)).unwrap_err();
        assert!(matches!(error, AskError::Timeout(SHORT)), "{error:?}");
    }
}

#[test]
fn daemon_with_a_full_backlog_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ctl");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waits = UnixStream::connect(&path).unwrap();
    let error = ask(&Daemon::new(&path).within(SHORT)).unwrap_err();
    assert!(matches!(error, AskError::Timeout(SHORT)), "{error:?}");
}
