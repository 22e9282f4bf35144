// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The backend channel and statistics, with a session whose state can be reached.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::device::DeviceOptions;
use crate::discard::{Cause, MemoryOptions};
use crate::state::State;
use crate::vhost_user::Session;

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

/// A report goes all the way through.
fn expect_served(guest: &mut Attachment) {
    let range = GpaRange::new(Gpa(8 * MIB), MIB).unwrap();
    guest.ram().write_pattern(range, 1).unwrap();
    let report = Buffer::writable(Gpa(8 * MIB), 1 << 20);
    guest.submit_and_wait(REPORTING, &[report]).unwrap();
    assert!(guest.ram().is_zero(range).unwrap());
}

/// A session in this process, where its state can be reached, and a frontend on its other end.
struct Inside {
    state: Arc<State>,
    session: Session,
    ended: EventFd,
}

fn inside(options: AttachOptions) -> (Inside, Attachment) {
    inside_with(DeviceOptions::default(), options)
}

fn inside_with(device: DeviceOptions, options: AttachOptions) -> (Inside, Attachment) {
    let state = Arc::new(State::new(device, MemoryOptions::default()));
    let ended = EventFd::new(EFD_CLOEXEC).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(state.frontend().is_none());
    let session =
        Session::start(|| Ok((theirs, None)), ended.try_clone().unwrap(), &state).unwrap();
    let guest = Attachment::over(ours, &ram(), options).unwrap();
    (Inside { state, session, ended }, guest)
}

impl Inside {
    fn changed(&self) -> std::io::Result<()> {
        self.state.frontend().unwrap().config_changed()
    }

    /// After the frontend has hung up.
    fn end(self) {
        self.ended.read().unwrap();
        self.session.join();
        assert!(self.state.frontend().is_none());
        assert!(!self.state.inhibit.holds(Cause::Migration));
    }
}

#[test]
fn a_change_of_the_configuration_reaches_the_frontend() {
    let (inside, mut guest) = inside(AttachOptions::default());
    assert!(!guest.wait_config_change(Duration::ZERO).unwrap());
    for _ in 0..3 {
        inside.changed().unwrap();
        assert!(guest.wait_config_change(TIMEOUT).unwrap());
    }
    assert!(!guest.wait_config_change(Duration::ZERO).unwrap());
    expect_served(&mut guest);
    drop(guest);
    inside.end();
}

/// What a frontend asked for goes with it, and what the operator asked for stays.
#[test]
fn a_migration_ends_with_its_frontend() {
    let (inside, mut guest) = inside(AttachOptions::default());
    let state = Arc::clone(&inside.state);
    let _ = state.inhibit.forbid(Cause::Operator);
    guest.set_logging(true).unwrap();
    assert!(state.inhibit.holds(Cause::Migration));
    drop(guest);
    inside.end();
    assert!(state.inhibit.holds(Cause::Operator));
}

#[test]
fn without_a_channel_a_change_is_an_error() {
    let known = AttachOptions::KNOWN_PROTOCOL_FEATURES;
    let protocol_features = known - VhostUserProtocolFeatures::BACKEND_REQ;
    let options = AttachOptions { protocol_features, ..AttachOptions::default() };
    let (inside, mut guest) = inside(options);
    let error = inside.changed().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(error.to_string().contains("SET_BACKEND_REQ_FD"), "{error}");
    expect_served(&mut guest);
    drop(guest);
    inside.end();
}

/// A frontend that does not read its channel gets an error on it, never a wait, and nothing else
/// suffers; one that opens another is told there.
#[test]
fn a_channel_that_is_full_or_broken_stalls_nothing() {
    let (inside, mut guest) = inside(AttachOptions::default());
    let error = (0..100_000).find_map(|_| inside.changed().err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    expect_served(&mut guest);
    assert!(guest.wait_config_change(TIMEOUT).unwrap());
    inside.changed().unwrap();

    let (mut frontend, backend) = UnixStream::pair().unwrap();
    guest
        .control("set backend channel", |frontend| frontend.set_backend_request_fd(&backend))
        .unwrap();
    drop(backend);
    inside.changed().unwrap();
    frontend.read_exact(&mut [0; 12]).unwrap();
    // Open, with nothing to read: QEMU takes an end of file for an error.
    frontend.set_nonblocking(true).unwrap();
    assert_eq!(frontend.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(frontend);
    // A daemon that another test starts just now has a copy of it until it runs its own program.
    let error = wait_until(TIMEOUT, Duration::from_millis(1), || match inside.changed() {
        Ok(()) => Err("it takes changes still".to_owned()),
        Err(error) => Ok(error),
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::BrokenPipe);
    expect_served(&mut guest);
    drop(guest);
    inside.end();
}

/// The driver's buffer with the free memory in it (`VIRTIO_BALLOON_S_MEMFREE`), at `at`.
fn statistics(ram: &Ram, at: Gpa, free: u64) -> Buffer {
    let mut bytes = 4_u16.to_le_bytes().to_vec();
    bytes.extend(free.to_le_bytes());
    ram.write(at, &bytes).unwrap();
    Buffer::readable(at, 10)
}

/// The buffer stays with the device until statistics are asked for, and then comes back to be
/// filled again.
#[test]
fn statistics_come_when_they_are_asked_for() {
    let device = DeviceOptions { statistics: true, ..DeviceOptions::default() };
    let (inside, mut guest) = inside_with(device, AttachOptions::default());
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let at = guest.scratch().start();
    let frontend = inside.state.frontend().unwrap();
    let tell = |guest: &mut Attachment, free| {
        let buffer = statistics(guest.ram(), at, free);
        guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
        guest.publish(queue).unwrap();
        // Taken once they are known.
        wait_until(TIMEOUT, Duration::from_millis(1), || {
            let sample = inside.state.balloon.statistics().map(|s| s.values.free_bytes);
            if sample == Some(Some(free)) { Ok(()) } else { Err(format!("{sample:?}")) }
        })
        .unwrap();
    };
    for free in 1..=5 {
        tell(&mut guest, free);
        // And kept until the poll.
        assert_eq!(guest.ring(queue).unwrap().pop_used().unwrap(), None);
        frontend.poll_statistics().unwrap();
        assert!(guest.wait_used(queue, TIMEOUT).unwrap().is_some());
    }
    // Without a buffer there is nothing to return; if the worker comes to it late there is one.
    frontend.poll_statistics().unwrap();
    tell(&mut guest, 6);
    frontend.poll_statistics().unwrap();
    assert!(guest.wait_used(queue, TIMEOUT).unwrap().is_some());
    drop(guest);
    inside.end();
    // It may be held for a moment longer than the session.
    frontend.poll_statistics().unwrap();
}

/// In the middle of a message, and of answers that it does not read.
#[test]
fn a_session_that_stalls_ends_when_it_is_hung_up() {
    let get_features = [1_u32, 1, 0].map(u32::to_ne_bytes).concat();
    for reads in [true, false] {
        let state = Arc::new(State::new(DeviceOptions::default(), MemoryOptions::default()));
        let (mut stalls, theirs) = UnixStream::pair().unwrap();
        let ended = EventFd::new(EFD_CLOEXEC).unwrap();
        let session = Session::start(|| Ok((theirs, None)), ended, &state).unwrap();
        if reads {
            stalls.write_all(&get_features[..7]).unwrap();
        } else {
            stalls.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            while stalls.write_all(&get_features).is_ok() {}
        }
        session.hang_up();
        session.join();
    }
}
