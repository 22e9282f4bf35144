// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device on its way to another daemon: what `VHOST_USER_SET_DEVICE_STATE_FD` and
//! `VHOST_USER_CHECK_DEVICE_STATE` carry (vhost-user protocol, "Migrating back-end state").
//!
//! The state is a line of JSON, so that whoever has to find out why a migration failed can read it:
//!
//! ```json
//! {"format":"vhost-device-balloon","version":1,"balloon":{…}}
//! ```
//!
//! Nothing of a queue is in it: the frontend moves the vring bases itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::error::Category;

use crate::device::{RestoreError, SavedBalloon};
use crate::lock::lock;
use crate::vhost_user::descriptor::Kind;
use crate::wake::Wake;

/// The version of the state that this daemon writes, and the only one that it reads.
pub const VERSION: u32 = 1;

const FORMAT: &str = "vhost-device-balloon";

/// The longest state that is read, in bytes. Ours is some hundred bytes long; a frontend must not
/// fill this process.
const MOST_BYTES: usize = 64 << 10;

/// How long a frontend that asks whether its state has arrived may take to end it. It should have
/// closed its end before.
const END_WITHIN: Duration = Duration::from_secs(5);

/// How long a transfer that was broken off may take to see it. Nothing but its pipe can keep it.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// Why a state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The frontend's descriptor is of another kind.
    #[error("the device state comes by {0}, expected a pipe or a Unix stream socket")]
    NotAPipe(String),
    /// The one before cannot be ended.
    #[error("the transfer before has not ended {STUCK_AFTER:?} after it was broken off")]
    Stuck,
    /// Nothing was transferred.
    #[error("there is no transfer of the device state to check")]
    NoTransfer,
    /// The kernel.
    #[error("the transfer of the device state failed")]
    Transfer(#[source] io::Error),
    /// The session ended first, or another transfer began.
    #[error("the transfer of the device state was broken off")]
    BrokenOff,
    /// The frontend did not close its end.
    #[error("the device state has not come to its end {END_WITHIN:?} after it should have")]
    Endless,
    /// More than any state has.
    #[error("the device state is longer than {MOST_BYTES} bytes")]
    TooLong,
    /// It is not of this program, or damaged.
    #[error("the device state is not that of a vhost-device-balloon")]
    Unreadable(#[source] Broken),
    /// JSON of another program.
    #[error("the device state is of another format, expected {FORMAT:?}")]
    Format,
    /// Another version of this program wrote it.
    #[error("the device state has version {0}, this daemon knows version {VERSION}")]
    Version(u32),
    /// This device is another one.
    #[error("the device state does not fit this device")]
    Device(#[from] RestoreError),
}

/// Where a state cannot be read, and not what is there: that is the text of whoever sent it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it {what} at line {line}, column {column}")]
pub struct Broken {
    what: &'static str,
    line: usize,
    column: usize,
}

impl From<serde_json::Error> for Broken {
    fn from(error: serde_json::Error) -> Self {
        let what = match error.classify() {
            Category::Io | Category::Eof => "breaks off",
            Category::Syntax => "is no JSON",
            Category::Data => "holds a value that does not belong there",
        };
        Self { what, line: error.line(), column: error.column() }
    }
}

fn unreadable(error: serde_json::Error) -> StateError {
    StateError::Unreadable(error.into())
}

/// What every version has in common.
#[derive(Serialize, Deserialize)]
struct Envelope {
    format: String,
    version: u32,
    balloon: Value,
}

/// The state as it travels.
///
/// # Errors
/// [`StateError::Unreadable`] if it cannot be put in words.
pub fn encode(balloon: &SavedBalloon) -> Result<Vec<u8>, StateError> {
    let balloon = serde_json::to_value(balloon).map_err(unreadable)?;
    let envelope = Envelope { format: FORMAT.to_owned(), version: VERSION, balloon };
    let mut bytes = serde_json::to_vec(&envelope).map_err(unreadable)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`StateError`]
pub fn decode(bytes: &[u8]) -> Result<SavedBalloon, StateError> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(unreadable)?;
    if envelope.format != FORMAT {
        return Err(StateError::Format);
    }
    if envelope.version != VERSION {
        return Err(StateError::Version(envelope.version));
    }
    serde_json::from_value(envelope.balloon).map_err(unreadable)
}

/// The transfer that a daemon began last. There is one at a time, over all sessions.
#[derive(Default)]
pub(crate) struct Transfers(Mutex<Option<Arc<Signals>>>);

/// Between a transfer and its thread.
struct Signals {
    /// It is to end.
    cancel: Wake,
    /// It has ended, and closed the frontend's descriptor.
    done: Wake,
}

/// A state on its way, in a thread of its own: the protocol wants the frontend's request answered
/// while the other end of the pipe still waits.
///
/// No other thread waits for that one to end. The frontend can keep it: the other end of a pipe can
/// hold the pipe's lock for as long as it likes.
pub(crate) struct Transfer {
    result: Receiver<Result<Option<Vec<u8>>, StateError>>,
    signals: Arc<Signals>,
    stop: Arc<Wake>,
}

impl Transfer {
    /// Writes `state` into `file` and closes it. `stop` breaks it off, and so does the next one.
    pub(crate) fn save(
        transfers: &Transfers,
        file: File,
        state: Vec<u8>,
        stop: Arc<Wake>,
    ) -> Result<Self, StateError> {
        Self::start(transfers, file, stop, move |pipe| pipe.write(&state).map(|()| None))
    }

    /// Reads `file` to its end. `stop` breaks it off, and so does the next one.
    pub(crate) fn load(
        transfers: &Transfers,
        file: File,
        stop: Arc<Wake>,
    ) -> Result<Self, StateError> {
        Self::start(transfers, file, stop, |pipe| pipe.read().map(Some))
    }

    fn start(
        transfers: &Transfers,
        file: File,
        stop: Arc<Wake>,
        work: impl FnOnce(&mut Pipe) -> Result<Option<Vec<u8>>, StateError> + Send + 'static,
    ) -> Result<Self, StateError> {
        let wake = || Wake::new().map_err(StateError::Transfer);
        let signals = Arc::new(Signals { cancel: wake()?, done: wake()? });
        let mut pipe = Pipe::new(file, Arc::clone(&stop), Arc::clone(&signals))?;
        let mut last = lock(&transfers.0);
        if let Some(before) = &*last {
            before.cancel.signal().map_err(StateError::Transfer)?;
            wait(&[&before.done], STUCK_AFTER)?;
            if !is_signalled(&before.done)? {
                return Err(StateError::Stuck);
            }
        }
        let (sender, result) = mpsc::channel();
        let theirs = Arc::clone(&signals);
        thread::Builder::new()
            .name("device-state".to_owned())
            .spawn(move || {
                let result = work(&mut pipe);
                // Closed before the frontend can learn that all is done.
                drop(pipe);
                // Nobody is left to be told where nobody waits.
                let _ = sender.send(result);
                // It fails only for a descriptor that is not an eventfd.
                let _ = theirs.done.signal();
            })
            .map_err(StateError::Transfer)?;
        *last = Some(Arc::clone(&signals));
        Ok(Self { result, signals, stop })
    }

    /// Waits for the end. What was read; none if it was written.
    pub(crate) fn finish(self) -> Result<Option<Vec<u8>>, StateError> {
        wait(&[&self.signals.done, &self.stop], END_WITHIN)?;
        match self.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Disconnected) => Err(StateError::BrokenOff),
            Err(TryRecvError::Empty) if is_signalled(&self.stop)? => Err(StateError::BrokenOff),
            Err(TryRecvError::Empty) => Err(StateError::Endless),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // It fails only for a descriptor that is not an eventfd.
        let _ = self.signals.cancel.signal();
    }
}

/// Waits for the first of these, and not longer.
fn wait(wakes: &[&Wake], most: Duration) -> Result<(), StateError> {
    let failed = |error: Errno| StateError::Transfer(error.into());
    let deadline = Instant::now() + most;
    let mut fds: Vec<_> =
        wakes.iter().map(|wake| PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| failed(Errno::INVAL))?;
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).map_err(failed),
        }
    }
}

fn is_signalled(wake: &Wake) -> Result<bool, StateError> {
    let mut fds = [PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    ready.map(|ready| ready > 0).map_err(|error| StateError::Transfer(error.into()))
}

/// The frontend's descriptor, which blocks no call: the flags of its file are the frontend's, too,
/// and may change at any time.
struct Pipe {
    file: File,
    /// What goes through a pipe goes through this one of our own, since `splice` takes a flag for
    /// one call. `None` for a socket.
    own: Option<(OwnedFd, OwnedFd)>,
    /// What is in the one of our own.
    waiting: usize,
    stop: Arc<Wake>,
    signals: Arc<Signals>,
}

impl Pipe {
    fn new(file: File, stop: Arc<Wake>, signals: Arc<Signals>) -> Result<Self, StateError> {
        let own = match Kind::of(file.as_fd()) {
            Kind::Pipe => {
                let own = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
                Some(own.map_err(|error| StateError::Transfer(error.into()))?)
            }
            Kind::UnixStream => None,
            other => return Err(StateError::NotAPipe(other.to_string())),
        };
        Ok(Self { file, own, waiting: 0, stop, signals })
    }

    fn wait(&self, what: PollFlags) -> Result<(), StateError> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.file.as_fd(), what),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.cancel.as_fd(), PollFlags::IN),
        ];
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(StateError::Transfer(error.into()));
            }
        }
        let ended = fds[1..].iter().any(|fd| !fd.revents().is_empty());
        if ended { Err(StateError::BrokenOff) } else { Ok(()) }
    }

    fn read(&mut self) -> Result<Vec<u8>, StateError> {
        let mut state = Vec::new();
        let mut part = [0; 4096];
        loop {
            self.wait(PollFlags::IN)?;
            match self.read_some(&mut part) {
                Ok(0) => return Ok(state),
                Ok(bytes) if state.len() + bytes > MOST_BYTES => return Err(StateError::TooLong),
                Ok(bytes) => state.extend_from_slice(&part[..bytes]),
                Err(error) => again(error)?,
            }
        }
    }

    fn read_some(&self, part: &mut [u8]) -> Result<usize, Errno> {
        let Some((reader, writer)) = &self.own else {
            return recv(&self.file, &mut *part, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes);
        };
        match splice(&self.file, None, writer, None, part.len(), SpliceFlags::NONBLOCK)? {
            0 => Ok(0),
            bytes => rustix::io::read(reader, &mut part[..bytes]),
        }
    }

    fn write(&mut self, mut state: &[u8]) -> Result<(), StateError> {
        while !state.is_empty() || self.waiting > 0 {
            self.wait(PollFlags::OUT)?;
            match self.write_some(state) {
                Ok(taken) => state = &state[taken..],
                Err(error) => again(error)?,
            }
        }
        Ok(())
    }

    /// How much of `state` is not to be given once more.
    fn write_some(&mut self, state: &[u8]) -> Result<usize, Errno> {
        let Some((reader, writer)) = &self.own else {
            return send(&self.file, state, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        };
        if self.waiting == 0 {
            self.waiting = rustix::io::write(writer, state)?;
            return Ok(self.waiting);
        }
        let gone = splice(reader, None, &self.file, None, self.waiting, SpliceFlags::NONBLOCK)?;
        self.waiting = self.waiting.saturating_sub(gone);
        Ok(0)
    }
}

fn again(error: Errno) -> Result<(), StateError> {
    match error {
        Errno::AGAIN | Errno::INTR => Ok(()),
        _ => Err(StateError::Transfer(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Balloon, DeviceOptions};
    use rustix::fs::OFlags;
    use rustix::pipe::pipe;
    use std::io::Write;

    fn saved() -> SavedBalloon {
        Balloon::new(DeviceOptions::default(), Arc::default()).save()
    }

    fn stop() -> Arc<Wake> {
        Arc::new(Wake::new().unwrap())
    }

    #[test]
    fn what_was_written_can_be_read() {
        let bytes = encode(&saved()).unwrap();
        assert_eq!(encode(&decode(&bytes).unwrap()).unwrap(), bytes);
    }

    #[test]
    fn what_this_daemon_does_not_know_is_refused_by_name() {
        let text = String::from_utf8(encode(&saved()).unwrap()).unwrap();
        let told = |text: &str| decode(text.as_bytes()).unwrap_err().to_string();
        let newer = told(&text.replace("\"version\":1", "\"version\":7"));
        assert!(newer.contains("version 7") && newer.contains("version 1"), "{newer}");
        let other = told(&text.replace(FORMAT, "virtiofsd"));
        assert!(!other.contains("virtiofsd") && other.contains(FORMAT), "{other}");
        for damaged in ["", "{", "[]", "\u{0}", &text[..text.len() / 2], &"[".repeat(60_000)] {
            assert!(matches!(decode(damaged.as_bytes()), Err(StateError::Unreadable(_))));
        }
    }

    #[test]
    fn a_state_is_read_up_to_a_limit_and_no_further() {
        let transfers = Transfers::default();
        let (read, write) = pipe().unwrap();
        let transfer = Transfer::load(&transfers, read.into(), stop()).unwrap();
        let feeder = thread::spawn(move || {
            let mut write = File::from(write);
            while write.write_all(&[b' '; 4096]).is_ok() {}
        });
        assert!(matches!(transfer.finish(), Err(StateError::TooLong)));
        feeder.join().unwrap();
    }

    #[test]
    fn a_pipe_that_stalls_is_left_when_the_session_ends() {
        let transfers = Transfers::default();
        let (read, write) = pipe().unwrap();
        let ends = stop();
        let load = Transfer::load(&transfers, read.into(), Arc::clone(&ends)).unwrap();
        ends.signal().unwrap();
        assert!(matches!(load.finish(), Err(StateError::BrokenOff)));
        drop(write);

        let (read, write) = pipe().unwrap();
        let ends = stop();
        // More than a pipe takes, and it has begun.
        let save =
            Transfer::save(&transfers, write.into(), vec![0; 1 << 20], Arc::clone(&ends)).unwrap();
        poll(&mut [PollFd::new(&read, PollFlags::IN)], None).unwrap();
        ends.signal().unwrap();
        assert!(matches!(save.finish(), Err(StateError::BrokenOff)));
    }

    #[test]
    fn a_transfer_that_is_replaced_is_over() {
        let transfers = Transfers::default();
        let (read, _write) = pipe().unwrap();
        let first = Transfer::load(&transfers, read.into(), stop()).unwrap();
        let (read, write) = pipe().unwrap();
        let second = Transfer::load(&transfers, read.into(), stop()).unwrap();
        assert!(matches!(first.finish(), Err(StateError::BrokenOff)));
        drop(write);
        assert_eq!(second.finish().unwrap(), Some(Vec::new()));
    }

    /// The flags of a file are those of everyone who has it.
    #[test]
    fn a_pipe_that_blocks_is_not_changed_and_not_waited_for() {
        let transfers = Transfers::default();
        for large in [false, true] {
            let (read, write) = pipe().unwrap();
            let (kept_read, kept_write) = (read.try_clone().unwrap(), write.try_clone().unwrap());
            let ends = stop();
            let state = vec![7; if large { 1 << 20 } else { 100 }];
            let transfer = if large {
                Transfer::save(&transfers, write.into(), state, Arc::clone(&ends)).unwrap()
            } else {
                Transfer::load(&transfers, read.into(), Arc::clone(&ends)).unwrap()
            };
            for kept in [&kept_read, &kept_write] {
                assert!(!rustix::fs::fcntl_getfl(kept).unwrap().contains(OFlags::NONBLOCK));
            }
            // Bytes that come and are taken away before they can be read.
            for _ in 0..if large { 0 } else { 1000 } {
                rustix::io::write(&kept_write, &[1]).unwrap();
                rustix::fs::fcntl_setfl(&kept_read, OFlags::NONBLOCK).unwrap();
                let _ = rustix::io::read(&kept_read, &mut [0]);
                rustix::fs::fcntl_setfl(&kept_read, OFlags::empty()).unwrap();
            }
            ends.signal().unwrap();
            assert!(matches!(transfer.finish(), Err(StateError::BrokenOff)));
            wait(&[&transfers.0.lock().unwrap().as_ref().unwrap().done], END_WITHIN).unwrap();
        }
    }

    /// What is quoted of a state fills the log, or worse.
    #[test]
    fn what_a_state_holds_is_not_repeated() {
        let text = String::from_utf8(encode(&saved()).unwrap()).unwrap();
        let secret = "secret".repeat(10_000);
        for (from, to) in [
            ("\"format\":", format!("\"{secret}\":1,\"format\":")),
            ("\"version\":1", format!("\"version\":\"{secret}\"")),
            (FORMAT, secret.clone()),
            ("\"balloon\":{", format!("\"balloon\":{{\"{secret}\":1,")),
            ("\"balloon\":{", format!("\"balloon\":\"{secret}\",\"x\":{{")),
        ] {
            let Err(error) = decode(text.replacen(from, &to, 1).as_bytes()) else { continue };
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let said = format!("{error}: {}", source.unwrap_or_default());
            assert!(said.len() < 200 && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn only_pipes_and_sockets_are_taken() {
        let transfers = Transfers::default();
        let zero = File::open("/dev/zero").unwrap();
        assert!(matches!(Transfer::load(&transfers, zero, stop()), Err(StateError::NotAPipe(_))));
    }
}
