// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every kind of descriptor in every message that may carry one, against a table of what serves what.
//!
//! The table is that of [`things`]: it says of each thing what it can be used for, and is not derived from
//! the code. What is admitted is used here as the daemon would, and what is not is named.

mod memory;
mod messages;
mod things;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::Admission;
use crate::discard::MemoryOptions;
use crate::vhost_user::message::Message;
use messages::CARRIERS;
use things::{Thing, things};

/// A message as it would come, of a frontend whose first it is.
///
/// Returns its descriptors if it is let in, or why it is not.
fn ask(bytes: &[u8], fds: Vec<OwnedFd>, allow_files: bool) -> Result<Vec<OwnedFd>, String> {
    let options = MemoryOptions { files: allow_files, ..MemoryOptions::default() };
    let mut admission = Admission::new(options);
    let mut message = Message::new();
    message.set(bytes, fds);
    match admission.check(&mut message) {
        Ok(_) => Ok(message.into_parts().1),
        Err(_) => Err(admission.refused().expect("a refusal says why").text.clone()),
    }
}

/// What a descriptor is open on, if nothing else is.
fn identity(fd: impl AsFd) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).ok()?;
    // What is no file, pipe or socket shares one inode with others.
    (stat.st_mode & libc::S_IFMT != 0).then_some((stat.st_dev, stat.st_ino))
}

fn open_in_this_process() -> BTreeSet<(u64, u64)> {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    fds.filter_map(|fd| fs::metadata(fd.path()).ok().map(|it| (it.dev(), it.ino()))).collect()
}

/// Descriptors may be closed in another thread.
fn expect_closed(things: &BTreeSet<(u64, u64)>) {
    let until = Instant::now() + Duration::from_secs(20);
    while !things.is_disjoint(&open_in_this_process()) {
        assert!(Instant::now() < until, "a descriptor that was refused stays open");
        std::thread::yield_now();
    }
}

#[test]
fn door_every_thing_follows_the_table() {
    let (mut cases, mut admitted, mut made) = (0, 0, BTreeSet::new());
    for carrier in CARRIERS {
        for allow_files in [false, true] {
            for Thing { name, fd, serves, is_shared, peers } in things() {
                made.extend(identity(&fd).filter(|_| !is_shared));
                let expected = serves.iter().any(|purpose| carrier.is_for(*purpose, allow_files));
                let what = format!("{name} in {:?}, files allowed: {allow_files}", carrier.request);
                match ask(&carrier.bytes(), vec![fd], allow_files) {
                    Ok(fds) => {
                        assert!(expected, "admitted: {what}");
                        fds.iter().for_each(|fd| carrier.use_as_the_daemon_does(fd, &what));
                        admitted += 1;
                    }
                    Err(text) => {
                        assert!(!expected, "refused: {what}: {text}");
                        let says = carrier.says.iter().any(|says| text.contains(says));
                        assert!(says, "{what}: {text}");
                    }
                }
                drop(peers);
                cases += 1;
            }
        }
    }
    println!("{cases} cases, {admitted} admitted");
    assert!(cases > 1_000 && admitted > 100 && admitted < cases, "{cases} {admitted}");
    expect_closed(&made);
}

/// Each message with none, one and two of what it takes.
#[test]
fn door_every_message_counts_its_descriptors() {
    let mut cases = 0;
    for request in 1..=44 {
        let carrier = CARRIERS.iter().find(|carrier| carrier.request as u32 == request);
        for count in 0..=2 {
            let Some(bytes) = carrier.map_or_else(|| messages::other(request), |c| Some(c.bytes()))
            else {
                continue;
            };
            let fds = (0..count).map(|_| things::fitting(carrier)).collect();
            let expected = count == usize::from(carrier.is_some()) || request == messages::REMOVE;
            match ask(&bytes, fds, false) {
                Ok(fds) => {
                    assert!(expected, "message {request} is let in with {count}");
                    let kept = if request == messages::REMOVE { 0 } else { count };
                    assert_eq!(fds.len(), kept, "message {request}");
                }
                Err(text) => {
                    assert!(!expected, "message {request} with {count}: {text}");
                    let says = format!("comes with {count} descriptors, expected");
                    assert!(text.contains(&says), "message {request}: {text}");
                }
            }
            cases += 1;
        }
    }
    assert!(cases > 100, "{cases}");
}
