// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a frontend sends that the daemon does not take: it says what came, what it expected and what
//! helps, hangs up, and serves the next one.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::raw::{NO_FD, Raw, Region, all_features};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::pipe::pipe;
use vhost::vhost_user::message::FrontendReq as R;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_sys_util::eventfd::EventFd;

const MIB: u64 = 1 << 20;
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const TIMEOUT: Duration = Duration::from_secs(20);

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn memory(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("region", flags).unwrap();
    ftruncate(&file, bytes).unwrap();
    file
}

fn region(gpa: u64, bytes: u64, offset: u64) -> Region {
    Region { gpa, bytes, user: (1 << 40) + gpa, offset }
}

/// The daemon serves the next frontend as if nothing had happened.
fn expect_well(daemon: &DaemonProcess) {
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    assert!(guest.reporting_queue().is_some());
}

/// A frontend that sends this is told that it failed, hung up on, and named in the log.
fn expect_refused(
    daemon: &DaemonProcess,
    request: R,
    payload: &[u8],
    fds: &[RawFd],
    says: &[&str],
) {
    let mut raw = Raw::connect(daemon, all_features());
    assert_eq!(raw.ask(request, payload, fds), Some(1), "{request:?} {says:?}");
    if matches!(request, R::ADD_MEM_REG | R::SET_MEM_TABLE) {
        // Without the memory, so that QEMU can say what is wrong.
        assert!(raw.ask(R::GET_FEATURES, &[], &[]).is_some(), "{says:?}\n{}", daemon.log());
    } else {
        assert!(raw.is_hung_up());
    }
    for text in says {
        assert!(daemon.wait_for_log(text, TIMEOUT).unwrap(), "{text:?} in\n{}", daemon.log());
    }
}

#[test]
fn regions_that_cannot_be_held_are_refused_by_name() {
    let daemon = start();
    let add = |region: Region, fd: &dyn AsRawFd, says: &[&str]| {
        expect_refused(&daemon, R::ADD_MEM_REG, &region.single(), &[fd.as_raw_fd()], says);
        let table = Region::table(&[region]);
        expect_refused(&daemon, R::SET_MEM_TABLE, &table, &[fd.as_raw_fd()], says);
    };
    add(region(0, 2 * MIB, 0), &memory(MIB), &["its file ends at byte 1048576"]);
    add(region(0, MIB, MIB + 4096), &memory(2 * MIB), &["from byte 1052672 of its file"]);
    add(region(0, MIB, 512), &memory(2 * MIB), &["pages of 4096 bytes"]);
    add(region(0, MIB, !4095), &memory(MIB), &["it passes 2^64"]);
    add(region(0, 0, 0), &memory(MIB), &["expected at least one page"]);
    let sealed = memory(MIB);
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    add(region(0, MIB, 0), &sealed, &["F_SEAL_WRITE"]);
    add(region(0, MIB, 0), &File::open("/dev/zero").unwrap(), &["share=on"]);
    add(region(0, MIB, 0), &pipe().unwrap().0, &["comes as the reading end of a pipe"]);
    add(region(0, MIB, 0), &EventFd::new(0).unwrap(), &["comes as an eventfd"]);
    let disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    disk.set_len(MIB).unwrap();
    add(region(0, MIB, 0), &disk, &["--allow-file-memory"]);

    // Two regions in one place; more regions than there are descriptors.
    let file = memory(4 * MIB);
    let both = Region::table(&[region(0, 2 * MIB, 0), region(MIB, 2 * MIB, 2 * MIB)]);
    let fds = [file.as_raw_fd(); 2];
    expect_refused(&daemon, R::SET_MEM_TABLE, &both, &fds, &["it overlaps another region"]);
    expect_refused(
        &daemon,
        R::SET_MEM_TABLE,
        &both,
        &fds[..1],
        &["1 descriptors, expected 2, one"],
    );
    let single = region(0, MIB, 0).single();
    expect_refused(&daemon, R::ADD_MEM_REG, &single, &[], &["add share=on"]);

    expect_well(&daemon);
}

/// vm-memory ignores a `munmap` that fails: it left the mappings for good.
#[test]
#[ignore = "needs huge pages: cargo xtask test"]
fn huge_pages_are_taken_as_whole_pages_only() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = memfd_create("huge", flags).unwrap();
    ftruncate(&huge, 8 * MIB).unwrap();
    let daemon = start();
    for (bytes, offset) in [(3 * MIB, 0), (2 * MIB, MIB), (2 * MIB + 4096, 2 * MIB)] {
        let payload = region(0, bytes, offset).single();
        let fds = [huge.as_raw_fd()];
        expect_refused(&daemon, R::ADD_MEM_REG, &payload, &fds, &["pages of 2097152 bytes"]);
    }
    expect_well(&daemon);
}

#[test]
fn there_are_as_many_regions_as_are_told_and_no_more() {
    let daemon = start();
    let file = memory(4096);
    let fds = [file.as_raw_fd()];
    let mut raw = Raw::connect(&daemon, all_features());
    let told = raw.ask(R::GET_MAX_MEM_SLOTS, &[], &[]).unwrap();
    for index in 0..told {
        let payload = region(index << 20, 4096, 0).single();
        assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(0), "region {index}");
    }
    let payload = region(told << 20, 4096, 0).single();
    assert_eq!(raw.ask(R::REM_MEM_REG, &region(0, 4096, 0).single(), &[]), Some(0));
    assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(0), "there is room for one again");
    let payload = region((told + 1) << 20, 4096, 0).single();
    assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(1));
    let says = format!("it would be region {}, expected at most {told}", told + 1);
    assert!(daemon.wait_for_log(&says, TIMEOUT).unwrap(), "{}", daemon.log());
    drop(raw);
    expect_well(&daemon);
}

/// A write to a log that is not there is SIGBUS.
#[test]
fn a_dirty_log_is_all_there() {
    let daemon = start();
    let log = |bytes: u64, offset: u64| [bytes.to_ne_bytes(), offset.to_ne_bytes()].concat();
    let empty = memory(0);
    let small = memory(4096);
    let disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    disk.set_len(4096).unwrap();
    for (payload, fd, says) in [
        (log(4096, 0), empty.as_raw_fd(), "its file ends at byte 0"),
        (log(4096, 4096), small.as_raw_fd(), "its file ends at byte 4096"),
        (log(u64::MAX - 4095, 4096), small.as_raw_fd(), "it passes 2^64"),
        (log(4096, 0), disk.as_raw_fd(), "it lies on "),
    ] {
        expect_refused(&daemon, R::SET_LOG_BASE, &payload, &[fd], &[says]);
    }
    expect_well(&daemon);
}

#[test]
fn what_is_no_eventfd_neither_kicks_nor_takes_errors() {
    let daemon = start();
    let queue = 2_u64.to_ne_bytes();
    let (reader, writer) = pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let file = memory(4096);
    let fds = [reader.as_raw_fd(), socket.as_raw_fd(), zero.as_raw_fd(), file.as_raw_fd()];
    for request in [R::SET_VRING_KICK, R::SET_VRING_ERR] {
        for fd in fds {
            expect_refused(&daemon, request, &queue, &[fd], &["expected an eventfd"]);
        }
    }
    for fd in &fds[2..] {
        let says = ["expected an eventfd, a pipe or a Unix socket"];
        expect_refused(&daemon, R::SET_VRING_CALL, &queue, &[*fd], &says);
    }
    let none = (2_u64 | NO_FD).to_ne_bytes();
    let mut raw = Raw::connect(&daemon, all_features());
    assert_eq!(raw.ask(R::SET_VRING_ERR, &none, &[]), Some(0));
    assert_eq!(raw.ask(R::SET_VRING_ERR, &none, &[writer.as_raw_fd()]), Some(1));
    drop(raw);
    expect_well(&daemon);
}

/// Such a socket keeps the one that closes it waiting for as long as it lingers.
#[test]
fn a_socket_that_lingers_keeps_nothing_waiting() {
    let mut daemon = start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (_unread, _) = listener.accept().unwrap();
    sender.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &sender, &[0; 65536]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    let linger = Some(Duration::from_secs(1000));
    rustix::net::sockopt::set_socket_linger(&sender, linger).unwrap();
    let mut raw = Raw::connect(&daemon, all_features());
    raw.send(R::SET_VRING_ERR, &0_u64.to_ne_bytes(), &[sender.as_raw_fd()]);
    // The daemon's copy is the last one, unless it has been closed already; this one must not
    // wait, either.
    rustix::net::sockopt::set_socket_linger(&sender, None).unwrap();
    assert_eq!(raw.reply(), Some(1));
    rustix::net::sockopt::set_socket_linger(&sender, linger).unwrap();
    std::thread::spawn(move || drop(sender));
    expect_well(&daemon);
    assert_eq!(daemon.terminate(TIMEOUT).unwrap().status.code(), Some(0));
}

#[test]
fn only_a_connected_stream_is_a_backend_channel() {
    let daemon = start();
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let (reader, _writer) = pipe().unwrap();
    let (datagram, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    for fd in [listener.as_raw_fd(), reader.as_raw_fd(), datagram.as_raw_fd(), tcp.as_raw_fd()] {
        let says = ["expected a connected Unix stream socket"];
        expect_refused(&daemon, R::SET_BACKEND_REQ_FD, &[], &[fd], &says);
    }
    let mut raw = Raw::connect(&daemon, all_features());
    let (channel, _other) = UnixStream::pair().unwrap();
    assert_eq!(raw.ask(R::SET_BACKEND_REQ_FD, &[], &[channel.as_raw_fd()]), Some(0));
}

#[test]
fn descriptors_where_none_belong_are_refused() {
    let daemon = start();
    let file = memory(4096);
    for (request, payload) in [(R::SET_FEATURES, vec![0; 8]), (R::SET_OWNER, vec![])] {
        let fds = [file.as_raw_fd()];
        expect_refused(&daemon, request, &payload, &fds, &["1 descriptors, expected 0"]);
    }
    // One that comes with the end of a region is closed and not used.
    let mut raw = Raw::connect(&daemon, all_features());
    let fds = [file.as_raw_fd()];
    let payload = region(0, 4096, 0).single();
    assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(0));
    assert_eq!(raw.ask(R::REM_MEM_REG, &payload, &fds), Some(0));
    assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(0));
}

/// The descriptors of a message that never ends go with its connection.
#[test]
fn half_a_message_holds_nothing_after_its_connection() {
    let daemon = start();
    expect_well(&daemon);
    let fds = daemon.fd_count().unwrap();
    let file = memory(4096);
    for _ in 0..8 {
        let raw = Raw::connect(&daemon, all_features());
        raw.send_part(R::SET_MEM_TABLE, 8 + 32, &[0; 8], &[file.as_raw_fd(); 32]);
        drop(raw);
    }
    expect_well(&daemon);
    let now = vmm_integration::measure::host::wait_until(TIMEOUT, Duration::from_millis(1), || {
        let now = daemon.fd_count().map_err(|error| error.to_string())?;
        if now <= fds { Ok(()) } else { Err(format!("{now} descriptors, {fds} before")) }
    });
    now.unwrap();
}

/// The regions of a table come in any order, and user-mode Linux sends room for two of which it
/// uses one.
#[test]
fn a_table_may_be_unsorted_and_longer_than_it_says() {
    let daemon = start();
    let (low, high) = (memory(MIB), memory(2 * MIB));
    let regions = [region(1 << 32, 2 * MIB, 0), region(0, MIB, 0)];
    let fds = [high.as_raw_fd(), low.as_raw_fd()];
    let mut raw = Raw::connect(&daemon, all_features());
    assert_eq!(raw.ask(R::SET_MEM_TABLE, &Region::table(&regions), &fds), Some(0));
    // Each went with its file: the upper one can be mapped a second time from that file only.
    assert_eq!(raw.ask(R::REM_MEM_REG, &regions[0].single(), &[]), Some(0));
    assert_eq!(raw.ask(R::ADD_MEM_REG, &regions[0].single(), &[high.as_raw_fd()]), Some(0));

    drop(raw);

    let mut raw = Raw::connect(&daemon, all_features());
    let mut table = Region::table(&regions[1..]);
    table.resize(72, 0);
    assert_eq!(raw.ask(R::SET_MEM_TABLE, &table, &fds[1..]), Some(0));
    assert_eq!(raw.ask(R::REM_MEM_REG, &regions[1].single(), &[]), Some(0));
}

/// A VMM that unplugs the device and plugs it in again, on one connection.
#[test]
fn a_second_owner_begins_afresh() {
    let daemon = start();
    let file = memory(MIB);
    let fds = [file.as_raw_fd()];
    let payload = region(0, MIB, 0).single();
    let mut raw = Raw::connect(&daemon, all_features());
    for _ in 0..3 {
        assert_eq!(raw.ask(R::ADD_MEM_REG, &payload, &fds), Some(0), "{}", daemon.log());
        assert_eq!(raw.ask(R::SET_OWNER, &[], &[]), Some(0), "{}", daemon.log());
        raw.negotiate(all_features());
    }
    drop(raw);
    assert!(daemon.wait_for_log("frontend disconnected", TIMEOUT).unwrap(), "{}", daemon.log());
}
