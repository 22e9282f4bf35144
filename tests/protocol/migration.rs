// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a live migration asks of the daemon: the log of dirty pages, the device's state, and a
//! device that starts again.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use rustix::pipe::{PipeFlags, pipe_with};
use vhost::vhost_user::VhostUserFrontend;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

fn start() -> DaemonProcess {
    DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn connect(daemon: &DaemonProcess, ram: &Ram) -> Attachment {
    Attachment::connect(&daemon.socket(), ram, AttachOptions::default()).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Reports a page that is given back, or not.
fn report(guest: &mut Attachment, discarded: bool) {
    let page = range(8 * MIB, 4096);
    guest.ram().write_pattern(page, 1).unwrap();
    guest.submit_and_wait(REPORTING, &[Buffer::writable(page.start(), 4096)]).unwrap();
    assert_eq!(guest.ram().is_zero(page).unwrap(), discarded);
}

/// The page of a queue that is written with every chain that comes back.
fn used_ring(guest: &mut Attachment, queue: u16) -> Gpa {
    Gpa(guest.ring(queue).unwrap().layout().used().0 & !4095)
}

/// The report before this was logged, and nothing but used rings: the worker may have looked at
/// other queues as well.
fn expect_logged(guest: &mut Attachment, log: &DirtyLog) {
    let queues = guest.queue_indices_in_use();
    let used: Vec<_> = queues.into_iter().map(|queue| used_ring(guest, queue)).collect();
    let dirty = log.take().unwrap();
    assert!(dirty.contains(&used_ring(guest, REPORTING)), "{dirty:?}");
    assert!(dirty.iter().all(|page| used.contains(page)), "{dirty:?} instead of {used:?}");
}

/// Stops logging. The worker may have written to a ring once more after the driver was told.
fn stop_logging(guest: &mut Attachment, log: &DirtyLog) {
    guest.set_logging(false).unwrap();
    log.take().unwrap();
}

fn log() -> DirtyLog {
    DirtyLog::new(Gpa(64 * MIB)).unwrap()
}

#[test]
fn writes_while_logging_is_enabled_are_logged() {
    let daemon = start();
    let mut guest = connect(&daemon, &ram());
    let log = log();
    // As QEMU does it: the log first, then the feature.
    guest.set_log(&log).unwrap();
    report(&mut guest, true);
    assert_eq!(log.take().unwrap(), []);
    guest.set_logging(true).unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);
    // The migration fails, and another one begins with the same log.
    stop_logging(&mut guest, &log);
    report(&mut guest, true);
    assert_eq!(log.take().unwrap(), []);
    guest.set_logging(true).unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);
    // Or with a new one.
    let newer = self::log();
    guest.set_log(&newer).unwrap();
    log.take().unwrap();
    report(&mut guest, false);
    assert_eq!(log.take().unwrap(), []);
    expect_logged(&mut guest, &newer);
}

/// The memory table changes after logging has begun: rings that lie in regions of the new one are
/// logged all the same.
#[test]
fn regions_that_arrive_after_the_log_are_logged() {
    let daemon = start();
    let mut guest = connect(&daemon, &ram());
    let log = log();
    guest.set_log(&log).unwrap();
    guest.set_logging(true).unwrap();

    guest.set_mem_table(&[0, 1, 2]).unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);

    // One by one, and none left in between.
    for region in [1, 2, 0] {
        guest.remove_region(region).unwrap();
    }
    for region in [0, 1, 2] {
        guest.add_region(region).unwrap();
    }
    log.take().unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);

    // While logging is off, too.
    stop_logging(&mut guest, &log);
    guest.set_mem_table(&[0, 1, 2]).unwrap();
    report(&mut guest, true);
    assert_eq!(log.take().unwrap(), []);
    guest.set_logging(true).unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);
}

/// A ring that lies in the new region itself, as after a guest's driver was set up again in memory
/// that was plugged in.
#[test]
fn ring_in_a_region_added_after_the_log_is_logged() {
    let daemon = start();
    let ram = ram();
    // The third region begins at 32 MiB; the rings are told of once it is there.
    let ring_area = Some(Gpa(32 * MIB));
    let queues = Some(vec![REPORTING]);
    let options = AttachOptions { ring_area, queues, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    guest.stop_queue(REPORTING).unwrap();
    guest.remove_region(2).unwrap();
    let log = log();
    guest.set_log(&log).unwrap();
    guest.set_logging(true).unwrap();
    guest.add_region(2).unwrap();
    guest.start_queue(REPORTING, 0).unwrap();
    report(&mut guest, false);
    expect_logged(&mut guest, &log);
}

#[test]
fn log_too_small_for_a_new_region_is_refused() {
    let daemon = start();
    let ram = ram();
    let options = AttachOptions { regions: Some(vec![0]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    guest.set_log(&DirtyLog::new(Gpa(16 * MIB)).unwrap()).unwrap();
    // Nobody looks at it yet.
    guest.add_region(1).unwrap();
    guest.set_logging(true).unwrap();
    assert!(guest.add_region(2).is_err());
    let told = "the dirty log does not cover the memory region of 16777216 bytes";
    assert!(daemon.wait_for_log(told, TIMEOUT).unwrap(), "{}", daemon.log());
    drop(guest);
    report(&mut connect(&daemon, &ram), true);
}

/// A page that is discarded here after its contents were sent would be one thing here and another
/// there.
#[test]
fn nothing_is_discarded_while_dirty_pages_are_logged() {
    let daemon = start();
    let ram = ram();
    let mut guest = connect(&daemon, &ram);
    report(&mut guest, true);
    guest.set_log(&log()).unwrap();
    guest.set_logging(true).unwrap();
    report(&mut guest, false);
    guest.set_logging(false).unwrap();
    report(&mut guest, true);
    guest.set_logging(true).unwrap();
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.skipped_bytes["migrating"], 4096);
    // The frontend that comes next migrates nothing.
    report(&mut connect(&daemon, &ram), true);
}

/// Once the frontend has its answer, not even a chain that was under way is discarded any more.
#[test]
fn a_discard_under_way_is_over_when_logging_has_begun() {
    let daemon = start();
    let size = 2 << 30;
    let ram = Ram::new(&RamLayout::flat(size, Backing::Memfd)).unwrap();
    let mut guest = connect(&daemon, &ram);
    ram.populate(range(64 * MIB, size - 64 * MIB)).unwrap();
    let quarter = u32::try_from((size - 64 * MIB) / 4).unwrap();
    for part in 0..4 {
        let start = Gpa(64 * MIB + part * u64::from(quarter));
        guest.ring(REPORTING).unwrap().add_chain(&[Buffer::writable(start, quarter)]).unwrap();
    }
    let full = ram.resident_bytes().unwrap();
    guest.publish(REPORTING).unwrap();
    wait_until(TIMEOUT, Duration::from_millis(1), || {
        let resident = ram.resident_bytes().map_err(|error| error.to_string())?;
        if resident < full { Ok(()) } else { Err("nothing discarded yet".to_owned()) }
    })
    .unwrap();
    guest.set_logging(true).unwrap();
    let then = ram.resident_bytes().unwrap();
    for _ in 0..4 {
        assert!(guest.wait_used(REPORTING, TIMEOUT).unwrap().is_some());
    }
    assert_eq!(ram.resident_bytes().unwrap(), then);
}

#[test]
fn the_device_moves_from_one_daemon_to_another() {
    let (here, there) = (start(), start());
    let ram = ram();
    let mut guest = connect(&here, &ram);
    // Fields that the guest writes.
    guest.use_balloon().unwrap();
    guest.write_config(4, &77_u32.to_le_bytes()).unwrap();
    guest.write_config(12, &0_u32.to_le_bytes()).unwrap();
    report(&mut guest, true);
    let before = guest.get_config().unwrap();
    assert_eq!(before.actual, 77);
    guest.stop().unwrap();
    let state = guest.save_state().unwrap();

    let options = AttachOptions { queues: Some(vec![]), ..AttachOptions::default() };
    let mut arrived = Attachment::connect(&there.socket(), &ram, options).unwrap();
    assert_ne!(arrived.get_config().unwrap(), before);
    arrived.load_state(&state).unwrap();
    assert_eq!(arrived.get_config().unwrap(), before);
    assert_eq!(arrived.save_state().unwrap(), state);
    drop(arrived);
    // The rings go on where they were, and so does the device.
    drop(here);
    let mut guest = guest.reconnect(&there.socket()).unwrap();
    assert_eq!(guest.get_config().unwrap(), before);
    report(&mut guest, true);
}

#[test]
fn a_state_that_cannot_be_read_changes_nothing() {
    let daemon = start();
    let ram = ram();
    let mut guest = connect(&daemon, &ram);
    guest.use_balloon().unwrap();
    guest.write_config(4, &5_u32.to_le_bytes()).unwrap();
    let state = guest.save_state().unwrap();
    let text = String::from_utf8(state.clone()).unwrap();
    let newer = text.replace("\"version\":1", "\"version\":2");
    assert_ne!(newer, text);
    let other = text.replace("vhost-device-balloon", "virtiofsd");
    for (hostile, told) in [
        (b"\xff\xfe garbage".to_vec(), "not that of a vhost-device-balloon"),
        (state[..state.len() / 2].to_vec(), "not that of a vhost-device-balloon"),
        (Vec::new(), "not that of a vhost-device-balloon"),
        (vec![b'['; 1 << 20], "longer than 65536 bytes"),
        (newer.into_bytes(), "has version 2, this daemon knows version 1"),
        (other.into_bytes(), "another format, expected \"vhost-device-balloon\""),
    ] {
        assert!(guest.load_state(&hostile).is_err());
        assert!(daemon.wait_for_log(told, TIMEOUT).unwrap(), "{}", daemon.log());
        assert_eq!(guest.save_state().unwrap(), state);
    }
    // Not even a transfer.
    assert!(guest.check_state().is_err());
    assert!(guest.start_load(File::open("/dev/zero").unwrap().into()).is_err());
    report(&mut guest, true);
}

/// A state that never comes to its end: an answer for the frontend that asks, and no hold on the
/// session's end nor on the daemon's.
#[test]
fn a_state_without_an_end_holds_nothing_up() {
    let mut daemon = start();
    let ram = ram();
    let mut guest = connect(&daemon, &ram);
    let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (read, write) = pipe();
    let mut write = File::from(write);
    guest.start_load(read).unwrap();
    write.write_all(b"{\"format\":").unwrap();
    report(&mut guest, true);
    assert!(guest.check_state().is_err());
    assert!(daemon.wait_for_log("has not come to its end", TIMEOUT).unwrap(), "{}", daemon.log());
    // Nobody reads on, but a daemon that another test starts has a copy for a moment.
    wait_until(TIMEOUT, Duration::from_millis(1), || match write.write_all(b"\"") {
        Ok(()) => Err("there is somebody to read".to_owned()),
        Err(_) => Ok(()),
    })
    .unwrap();

    // It hangs up in the middle of one.
    let (read, _write) = pipe();
    guest.start_load(read).unwrap();
    drop(guest);
    let mut guest = connect(&daemon, &ram);
    report(&mut guest, true);

    // Asked to end while the frontend waits for its answer.
    let (read, _write) = pipe();
    guest.start_load(read).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| guest.check_state());
        // The request has to be under way, which nothing outside tells.
        std::thread::sleep(Duration::from_millis(100));
        let ended = daemon.terminate(TIMEOUT).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
        assert!(waits.join().unwrap().is_err());
    });
}

/// A guest that reboots, as QEMU says it: the queues stop, the device is reset, a driver comes up.
#[test]
fn a_device_that_was_reset_starts_anew() {
    let daemon = start();
    let ram = ram();
    let mut guest = connect(&daemon, &ram);
    guest.use_balloon().unwrap();
    guest.write_config(4, &9_u32.to_le_bytes()).unwrap();
    guest.set_poison(7).unwrap();
    report(&mut guest, false);
    let features = guest.features();
    let queues = guest.stop().unwrap();
    guest.control("reset device", |frontend| frontend.reset_device()).unwrap();
    let config = guest.get_config().unwrap();
    assert_eq!((config.actual, config.poison_val), (0, 0));
    guest.set_features(features).unwrap();
    for (queue, _) in queues {
        guest.reset_ring(queue).unwrap();
        guest.start_queue(queue, 0).unwrap();
        guest.enable_queue(queue, true).unwrap();
    }
    report(&mut guest, true);
}

/// A daemon that is killed, in the midst of a migration even, and one that takes its place.
#[test]
fn a_frontend_that_comes_back_goes_on_where_it_was() {
    let mut daemon = start();
    let ram = ram();
    let mut guest = connect(&daemon, &ram);
    report(&mut guest, true);
    // The same daemon: nothing is lost.
    guest.use_balloon().unwrap();
    guest.write_config(4, &9_u32.to_le_bytes()).unwrap();
    guest.set_logging(true).unwrap();
    let before = guest.get_config().unwrap();
    let mut guest = guest.reconnect(&daemon.socket()).unwrap();
    assert_eq!(guest.get_config().unwrap(), before);
    report(&mut guest, true);
    // Another: what the driver has queued is served there.
    daemon.kill().unwrap();
    let page = range(9 * MIB, 4096);
    ram.write_pattern(page, 1).unwrap();
    let next = start();
    guest.ring(REPORTING).unwrap().add_chain(&[Buffer::writable(page.start(), 4096)]).unwrap();
    guest.ring(REPORTING).unwrap().publish().unwrap();
    let begin = Instant::now();
    let mut guest = guest.reconnect(&next.socket()).unwrap();
    assert!(guest.wait_used(REPORTING, TIMEOUT).unwrap().is_some(), "{:?}", begin.elapsed());
    assert!(ram.is_zero(page).unwrap());
}
