// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A transfer of the state in a thread of its own, one at a time.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::error::{END_WITHIN, STUCK_AFTER, StateError};
use super::pipe::Pipe;
use crate::lock::lock;
use crate::wake::Wake;

/// The transfer that a daemon began last. There is one at a time, over all sessions.
#[derive(Default)]
pub(crate) struct Transfers(Mutex<Option<Arc<Signals>>>);

/// Between a transfer and its thread.
struct Signals {
    /// Asks the thread to end.
    cancel: Arc<Wake>,
    /// Says that the thread has ended, and closed the frontend's descriptor.
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
        let signals = Arc::new(Signals { cancel: Arc::new(wake()?), done: wake()? });
        let mut pipe = Pipe::new(file, [Arc::clone(&stop), Arc::clone(&signals.cancel)])?;
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
                // No caller waits for the result any more.
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;
    use rustix::pipe::pipe;
    use std::io::Write;

    fn stop() -> Arc<Wake> {
        Arc::new(Wake::new().unwrap())
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
    fn blocking_pipe_is_neither_changed_nor_waited_for() {
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

    #[test]
    fn only_pipes_and_sockets_are_taken() {
        let transfers = Transfers::default();
        let zero = File::open("/dev/zero").unwrap();
        assert!(matches!(Transfer::load(&transfers, zero, stop()), Err(StateError::NotAPipe(_))));
    }
}
