// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Passes the messages of a frontend on to the framework, and back.
//!
//! The framework keeps the connection that it accepts to itself, and has no way to send
//! `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` on the channel that it is given (vhost 0.18). So it gets
//! a connection to this relay instead, which passes every message on as it came, with its
//! descriptors, and looks at those that the framework keeps to itself. Only control messages come
//! this way; queues and memory are shared as they always are.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use super::admission::{Ahead, Denied};
use super::error::MessageError;
use super::message::{Message, Step};
use crate::hand_over::Entry;
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname,
    listen, send, socket_with,
};
use vhost::vhost_user::message::VhostUserHeaderFlag;

/// A connection, and a listener on which nothing waits but its other end.
///
/// This is a socket pair in effect, for a framework that accepts connections and nothing else. The
/// listener's address is one that the kernel makes up, in no file system. It takes one connection
/// at a time (a backlog of 0), and is ours: that ours was taken proves that no other came first.
///
/// # Errors
/// What the kernel says; `EAGAIN` if another did.
pub(super) fn pair() -> io::Result<(UnixStream, UnixListener)> {
    let new = |flags| socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let listener = new(SocketFlags::CLOEXEC)?;
    bind(&listener, &SocketAddrUnix::new_unnamed())?;
    listen(&listener, 0)?;
    let address = getsockname(&listener)?;
    let stream = new(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    connect(&stream, &address)?;
    Ok((stream.into(), listener.into()))
}

/// The two ends of a relay, and what stops it.
pub(super) struct Relay {
    /// The frontend's connection.
    pub(super) frontend: UnixStream,
    /// The other end of the framework's connection.
    pub(super) framework: UnixStream,
    /// Ends the relay at once when it is signalled.
    pub(super) stop: Arc<Wake>,
}

impl Relay {
    /// Passes messages on until one side hangs up or `stop` is signalled, `asked` first. `look`
    /// decides on each of the frontend's before the framework sees it; `answered` is called right
    /// before an answer goes to the frontend.
    ///
    /// A side that stalls, in the middle of a message or because it does not read, stalls no other
    /// but the other, and not even that when it hangs up.
    ///
    /// # Errors
    /// [`MessageError`] for a message of which the end cannot be known, or that is not let in.
    pub(super) fn run(
        self,
        asked: Option<Entry>,
        mut look: impl FnMut(&mut Message) -> Result<Ahead, Denied>,
        mut answered: impl FnMut(),
    ) -> Result<(), MessageError> {
        let (mut there, mut back) = (Message::new(), Message::new());
        // What goes to the framework before `there`, the last one first, and what of it is going.
        let (mut ahead, mut own) = (Ahead::new(), Message::new());
        let mut asked = asked;
        // Nothing goes to the framework once either of the two has ended its part.
        let mut goes_there = true;
        loop {
            let ready = match &asked {
                Some(_) => Ready::default(),
                None => self.wait(goes_there.then_some(&there), &back)?,
            };
            if ready.stop {
                return Ok(());
            }
            if goes_there && !there.is_whole() {
                let again = asked.is_some();
                let received = match asked.take() {
                    Some(entry) => {
                        there.take(entry);
                        Step::Done
                    }
                    None => there.receive(self.frontend.as_fd())?,
                };
                match received {
                    Step::Done => {
                        ahead = match look(&mut there) {
                            Ok(ahead) => ahead,
                            Err(denied) => {
                                if denied.is_answered && back.is_empty() {
                                    self.refuse(&there);
                                }
                                match denied.end {
                                    // Its descriptors are with the daemon before this one.
                                    Some(_) if again => there.clear(),
                                    Some(error) => return Err(error),
                                    None => there.clear(),
                                }
                                Ahead::new()
                            }
                        };
                        ahead.reverse();
                    }
                    Step::Waits => {}
                    Step::Closed => {
                        goes_there = false;
                        // The framework sees it when it has done what came before.
                        let _ = self.framework.shutdown(Shutdown::Write);
                    }
                }
            } else if ready.frontend_gone {
                return Ok(());
            }
            while goes_there && there.is_whole() {
                if own.is_empty()
                    && let Some(first) = ahead.pop()
                {
                    own.write(&first);
                }
                let next = if own.is_empty() { &mut there } else { &mut own };
                match next.send(self.framework.as_fd())? {
                    Step::Done => {}
                    Step::Waits => break,
                    Step::Closed => goes_there = false,
                }
            }
            if !back.is_whole() {
                match back.receive(self.framework.as_fd())? {
                    // Not behind it: the frontend that is woken may be given the processor.
                    Step::Done => answered(),
                    Step::Waits => {}
                    Step::Closed => return Ok(()),
                }
            }
            if back.is_whole() {
                match back.send(self.frontend.as_fd())? {
                    Step::Done => {}
                    // A frontend that does not read the last words of a framework that has ended
                    // must not keep others waiting.
                    Step::Waits if !ready.framework_gone => {}
                    Step::Waits | Step::Closed => return Ok(()),
                }
            }
        }
    }

    /// Tells the framework what the frontend has said to the daemon before this one. The frontend has
    /// its answers, and gets none. `look` sees each message as that of a frontend.
    ///
    /// # Errors
    /// [`MessageError`] where a message is not let in, or the framework ends.
    pub(super) fn replay(
        &self,
        settings: Vec<Entry>,
        mut look: impl FnMut(&mut Message) -> Result<Ahead, Denied>,
    ) -> Result<(), MessageError> {
        let (mut there, mut back) = (Message::new(), Message::new());
        for entry in settings {
            there.take(entry);
            let answers = there.is_answered();
            match look(&mut there) {
                // It begins, and there is nothing to be ahead of.
                Ok(_) => {}
                Err(Denied { end: Some(error), .. }) => return Err(error),
                Err(Denied { end: None, .. }) => {
                    there.clear();
                    continue;
                }
            }
            loop {
                match there.send(self.framework.as_fd())? {
                    Step::Done => break,
                    Step::Closed => return Err(MessageError::Ended),
                    Step::Waits if self.wait(Some(&there), &back)?.stop => return Ok(()),
                    Step::Waits => {}
                }
            }
            while answers && !back.is_whole() {
                if self.wait(None, &back)?.stop {
                    return Ok(());
                }
                if back.receive(self.framework.as_fd())? == Step::Closed {
                    return Err(MessageError::Ended);
                }
            }
            back.clear();
        }
        Ok(())
    }

    /// Tells a frontend that waits for it that a message failed. It is hung up on then, and one that
    /// does not read sees that alone.
    fn refuse(&self, message: &Message) {
        let flags = VhostUserHeaderFlag::REPLY.bits() | 1;
        let header = [message.request(), flags, 8].map(u32::to_ne_bytes).concat();
        let answer = [header.as_slice(), &1_u64.to_ne_bytes()].concat();
        let _ = send(&self.frontend, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    /// Waits for whatever lets one of the two messages go on; `there` is none if nothing goes that
    /// way any more.
    fn wait(&self, there: Option<&Message>, back: &Message) -> Result<Ready, MessageError> {
        let mut frontend = PollFlags::empty();
        let mut framework = PollFlags::empty();
        match there {
            Some(message) if message.is_whole() => framework |= PollFlags::OUT,
            Some(_) => frontend |= PollFlags::IN,
            None => {}
        }
        match back.is_whole() {
            true => frontend |= PollFlags::OUT,
            false => framework |= PollFlags::IN,
        }
        let mut fds = [
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.frontend, frontend),
            PollFd::new(&self.framework, framework),
        ];
        while let Err(error) = poll(&mut fds, None) {
            if error != Errno::INTR {
                return Err(MessageError::Socket(error.into()));
            }
        }
        let [stop, frontend, framework] = fds.map(|fd| fd.revents());
        Ok(Ready {
            stop: stop.contains(PollFlags::IN),
            frontend_gone: frontend.contains(PollFlags::HUP),
            framework_gone: framework.contains(PollFlags::HUP),
        })
    }
}

/// What a wait came to.
#[derive(Default)]
struct Ready {
    stop: bool,
    frontend_gone: bool,
    framework_gone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::thread::JoinHandle;

    #[test]
    fn nobody_comes_between_the_two_ends() {
        let (mut ours, listener) = pair().unwrap();
        let address = getsockname(&listener).unwrap();
        let flags = SocketFlags::NONBLOCK;
        let other = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        assert_eq!(connect(&other, &address), Err(Errno::AGAIN));
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(b"us").unwrap();
        let mut bytes = [0; 2];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"us");
    }

    type Looked = (u32, usize);

    struct Setting {
        frontend: UnixStream,
        framework: UnixStream,
        stop: Arc<Wake>,
        relay: JoinHandle<(Result<(), MessageError>, Vec<Looked>)>,
    }

    fn start() -> Setting {
        let ((frontend, left), (right, framework)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let stop = Arc::new(Wake::new().unwrap());
        let relay = Relay { frontend: left, framework: right, stop: Arc::clone(&stop) };
        let relay = std::thread::spawn(move || {
            let mut looked = Vec::new();
            let look = |message: &mut Message| {
                looked.push((message.request(), message.fds().len()));
                Ok(Ahead::new())
            };
            let end = relay.run(None, look, || {});
            (end, looked)
        });
        Setting { frontend, framework, stop, relay }
    }

    fn message(request: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).unwrap();
        [&[request, 1, size].map(u32::to_ne_bytes).concat(), body].concat()
    }

    /// Receives one message of the framework's side.
    fn receive(from: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut message = Message::new();
        loop {
            match message.receive(from.as_fd()).unwrap() {
                Step::Done => return message.into_parts(),
                Step::Waits => {
                    poll(&mut [PollFd::new(from, PollFlags::IN)], None).unwrap();
                }
                Step::Closed => panic!("hung up"),
            }
        }
    }

    #[test]
    fn messages_are_relayed_unchanged_with_descriptors() {
        let setting = start();
        let first = message(5, &[7; 4096]);
        let mut sent = Message::new();
        let mut pipes = Vec::new();
        for _ in 0..32 {
            pipes.push(rustix::pipe::pipe().unwrap());
        }
        sent.set(&first, pipes.iter().map(|pipe| pipe.1.try_clone().unwrap()));
        assert_eq!(sent.send(setting.frontend.as_fd()).unwrap(), Step::Done);
        (&setting.frontend).write_all(&message(6, &[])).unwrap();
        let (bytes, fds) = receive(&setting.framework);
        assert_eq!((bytes, fds.len()), (first, 32));
        for (at, fd) in fds.iter().enumerate() {
            rustix::io::write(fd, &[u8::try_from(at).unwrap()]).unwrap();
        }
        for (at, (read, _)) in pipes.iter().enumerate() {
            let mut byte = [0];
            rustix::io::read(read, &mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), at);
        }
        let (bytes, fds) = receive(&setting.framework);
        assert_eq!((bytes, fds.len()), (message(6, &[]), 0));
        // And back.
        sent.set(&message(6, &[9; 8]), [pipes.pop().unwrap().0]);
        assert_eq!(sent.send(setting.framework.as_fd()).unwrap(), Step::Done);
        let (bytes, fds) = receive(&setting.frontend);
        assert_eq!((bytes, fds.len()), (message(6, &[9; 8]), 1));
        drop(setting.frontend);
        let (end, looked) = setting.relay.join().unwrap();
        end.unwrap();
        assert_eq!(looked, [(5, 32), (6, 0)]);
    }

    #[test]
    fn a_message_in_pieces_is_put_together() {
        let mut setting = start();
        for byte in message(7, b"piece by piece") {
            setting.frontend.write_all(&[byte]).unwrap();
        }
        assert_eq!(receive(&setting.framework).0, message(7, b"piece by piece"));
    }

    #[test]
    fn what_cannot_be_a_message_ends_the_relay() {
        let mut setting = start();
        setting.frontend.write_all(&[0xff; 12]).unwrap();
        let text = setting.relay.join().unwrap().0.unwrap_err().to_string();
        assert!(text.contains("announces 4294967295 bytes, expected at most 4096"), "{text}");
    }

    #[test]
    fn more_descriptors_than_a_message_has_end_the_relay() {
        let setting = start();
        let bytes = message(5, b"four");
        let fds: Vec<_> = (0..20).map(|_| rustix::pipe::pipe().unwrap().0).collect();
        for part in bytes.chunks(8) {
            let mut sent = Message::new();
            sent.set(part, fds.iter().map(|fd| fd.try_clone().unwrap()));
            assert_eq!(sent.send(setting.frontend.as_fd()).unwrap(), Step::Done);
        }
        let end = setting.relay.join().unwrap().0;
        assert!(matches!(end, Err(MessageError::TooManyDescriptors)), "{end:?}");
    }

    #[test]
    fn a_frontend_that_stalls_does_not_keep_the_end_away() {
        // In the middle of a message.
        let mut setting = start();
        setting.frontend.write_all(&message(8, &[1; 100])[..50]).unwrap();
        setting.stop.signal().unwrap();
        setting.relay.join().unwrap().0.unwrap();

        // Of its own, with a framework that does not read.
        let mut setting = start();
        setting.frontend.set_nonblocking(true).unwrap();
        let whole = message(8, &[1; 4096]);
        while setting.frontend.write(&whole).is_ok_and(|bytes| bytes > 0) {}
        drop(setting.frontend);
        setting.relay.join().unwrap().0.unwrap();

        // With answers that nobody reads, of a framework that has ended.
        let mut setting = start();
        setting.framework.set_nonblocking(true).unwrap();
        while setting.framework.write(&whole).is_ok_and(|bytes| bytes > 0) {}
        drop(setting.framework);
        setting.relay.join().unwrap().0.unwrap();
    }

    #[test]
    fn last_reply_reaches_a_frontend_that_stopped_writing() {
        let mut setting = start();
        setting.frontend.write_all(&message(9, &[])).unwrap();
        setting.frontend.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&setting.framework).0, message(9, &[]));
        assert_eq!(setting.framework.read(&mut [0]).unwrap(), 0);
        setting.framework.write_all(&message(9, &[3; 8])).unwrap();
        drop(setting.framework);
        assert_eq!(receive(&setting.frontend).0, message(9, &[3; 8]));
        setting.relay.join().unwrap().0.unwrap();
    }
}
