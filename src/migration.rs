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
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::device::{RestoreError, SavedBalloon};
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

/// Why a state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The frontend's descriptor is of another kind.
    #[error("the device state is to pass a pipe or a socket, and the frontend sent something else")]
    NotAPipe,
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
    Unreadable(#[source] serde_json::Error),
    /// JSON of another program.
    #[error("the device state is of format {0:?}, expected {FORMAT:?}")]
    Format(String),
    /// Another version of this program wrote it.
    #[error("the device state has version {0}, this daemon knows version {VERSION}")]
    Version(u32),
    /// This device is another one.
    #[error("the device state does not fit this device")]
    Device(#[from] RestoreError),
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
    let balloon = serde_json::to_value(balloon).map_err(StateError::Unreadable)?;
    let envelope = Envelope { format: FORMAT.to_owned(), version: VERSION, balloon };
    let mut bytes = serde_json::to_vec(&envelope).map_err(StateError::Unreadable)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`StateError`]
pub fn decode(bytes: &[u8]) -> Result<SavedBalloon, StateError> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(StateError::Unreadable)?;
    if envelope.format != FORMAT {
        return Err(StateError::Format(envelope.format.chars().take(80).collect()));
    }
    if envelope.version != VERSION {
        return Err(StateError::Version(envelope.version));
    }
    serde_json::from_value(envelope.balloon).map_err(StateError::Unreadable)
}

/// A state on its way, in a thread of its own: the protocol wants the frontend's request answered
/// while the other end of the pipe still waits.
pub(crate) struct Transfer {
    thread: Option<JoinHandle<()>>,
    result: Receiver<Result<Option<Vec<u8>>, StateError>>,
    cancel: Arc<Wake>,
}

impl Transfer {
    /// Writes `state` into `file` and closes it. `stop` breaks it off.
    pub(crate) fn save(file: File, state: Vec<u8>, stop: Arc<Wake>) -> Result<Self, StateError> {
        Self::start(file, stop, move |pipe| pipe.write(&state).map(|()| None))
    }

    /// Reads `file` to its end. `stop` breaks it off.
    pub(crate) fn load(file: File, stop: Arc<Wake>) -> Result<Self, StateError> {
        Self::start(file, stop, |pipe| pipe.read().map(Some))
    }

    fn start(
        file: File,
        stop: Arc<Wake>,
        work: impl FnOnce(&mut Pipe) -> Result<Option<Vec<u8>>, StateError> + Send + 'static,
    ) -> Result<Self, StateError> {
        let cancel = Arc::new(Wake::new().map_err(StateError::Transfer)?);
        let mut pipe = Pipe::new(file, [stop, Arc::clone(&cancel)])?;
        let (sender, result) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("device-state".to_owned())
            .spawn(move || {
                let result = work(&mut pipe);
                // Closed before the frontend can learn that all is done.
                drop(pipe);
                // Nobody is left to be told where nobody waits.
                let _ = sender.send(result);
            })
            .map_err(StateError::Transfer)?;
        Ok(Self { thread: Some(thread), result, cancel })
    }

    /// Waits for the end. What was read; none if it was written.
    pub(crate) fn finish(self) -> Result<Option<Vec<u8>>, StateError> {
        match self.result.recv_timeout(END_WITHIN) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(StateError::Endless),
            Err(RecvTimeoutError::Disconnected) => Err(StateError::BrokenOff),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // It fails only for a descriptor that is not an eventfd.
        let _ = self.cancel.signal();
        if let Some(thread) = self.thread.take() {
            // A panic ends the process.
            let _ = thread.join();
        }
    }
}

/// The frontend's descriptor, on which nothing blocks longer than it may.
struct Pipe {
    file: File,
    ends: [Arc<Wake>; 2],
}

impl Pipe {
    fn new(file: File, ends: [Arc<Wake>; 2]) -> Result<Self, StateError> {
        let failed = |error: Errno| StateError::Transfer(error.into());
        let kind = FileType::from_raw_mode(fstat(&file).map_err(failed)?.st_mode);
        // Others can block even if they say that they do not.
        if !matches!(kind, FileType::Fifo | FileType::Socket) {
            return Err(StateError::NotAPipe);
        }
        let flags = fcntl_getfl(&file).map_err(failed)?;
        fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(failed)?;
        Ok(Self { file, ends })
    }

    fn wait(&self, what: PollFlags) -> Result<(), StateError> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.file.as_fd(), what),
            PollFd::from_borrowed_fd(self.ends[0].as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.ends[1].as_fd(), PollFlags::IN),
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
            match self.file.read(&mut part) {
                Ok(0) => return Ok(state),
                Ok(bytes) if state.len() + bytes > MOST_BYTES => return Err(StateError::TooLong),
                Ok(bytes) => state.extend_from_slice(&part[..bytes]),
                Err(error) => again(error)?,
            }
        }
    }

    fn write(&mut self, mut state: &[u8]) -> Result<(), StateError> {
        while !state.is_empty() {
            self.wait(PollFlags::OUT)?;
            match self.file.write(state) {
                Ok(bytes) => state = &state[bytes..],
                Err(error) => again(error)?,
            }
        }
        Ok(())
    }
}

fn again(error: io::Error) -> Result<(), StateError> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(StateError::Transfer(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Balloon, DeviceOptions};
    use rustix::pipe::pipe;

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
        assert!(other.contains("\"virtiofsd\"") && other.contains(FORMAT), "{other}");
        for damaged in ["", "{", "[]", "\u{0}", &text[..text.len() / 2], &"[".repeat(60_000)] {
            assert!(matches!(decode(damaged.as_bytes()), Err(StateError::Unreadable(_))));
        }
    }

    #[test]
    fn a_state_is_read_up_to_a_limit_and_no_further() {
        let (read, write) = pipe().unwrap();
        let transfer = Transfer::load(read.into(), stop()).unwrap();
        let feeder = thread::spawn(move || {
            let mut write = File::from(write);
            while write.write_all(&[b' '; 4096]).is_ok() {}
        });
        assert!(matches!(transfer.finish(), Err(StateError::TooLong)));
        feeder.join().unwrap();
    }

    #[test]
    fn a_pipe_that_stalls_is_left_when_the_session_ends() {
        let (read, write) = pipe().unwrap();
        let ends = stop();
        let load = Transfer::load(read.into(), Arc::clone(&ends)).unwrap();
        ends.signal().unwrap();
        assert!(matches!(load.finish(), Err(StateError::BrokenOff)));
        drop(write);

        let (read, write) = pipe().unwrap();
        let ends = stop();
        // More than a pipe takes, and it has begun.
        let save = Transfer::save(write.into(), vec![0; 1 << 20], Arc::clone(&ends)).unwrap();
        poll(&mut [PollFd::new(&read, PollFlags::IN)], None).unwrap();
        ends.signal().unwrap();
        assert!(matches!(save.finish(), Err(StateError::BrokenOff)));
    }

    #[test]
    fn a_transfer_that_is_replaced_is_over() {
        let (read, _write) = pipe().unwrap();
        drop(Transfer::load(read.into(), stop()).unwrap());
    }

    #[test]
    fn only_pipes_and_sockets_are_taken() {
        let zero = File::open("/dev/zero").unwrap();
        assert!(matches!(Transfer::load(zero, stop()), Err(StateError::NotAPipe)));
    }
}
