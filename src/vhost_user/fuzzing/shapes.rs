// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our rules for the shape of a message beside the framework's parser, which gets the same message.
//!
//! What the framework's parser gives to its device passes here, but for queues and sizes that our device
//! does not have. What passes here is not turned down by the parser, where its rules are those of shape.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::dup;
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::FrontendReq as R;

use super::super::message::Message;
use super::super::validate::{self, ShapeError};
use super::accepting::Accepting;

/// One message.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    request: u8,
    wide: Option<u32>,
    flags: Flags,
    words: Vec<u32>,
    rest: Vec<u8>,
    /// For messages that say how much follows.
    count: Option<u8>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Flags {
    Plain,
    NeedReply,
    Any(u32),
}

struct Framework {
    frontend: UnixStream,
    handler: BackendReqHandler<Accepting>,
    device: Arc<Accepting>,
    fd: OwnedFd,
}

thread_local! {
    static FRAMEWORK: RefCell<Option<Framework>> = const { RefCell::new(None) };
}

impl Framework {
    /// A parser that has negotiated everything.
    fn new() -> Self {
        let (frontend, backend) = UnixStream::pair().expect("a socket pair");
        let device = Arc::<Accepting>::default();
        let handler = BackendReqHandler::from_stream(backend, Arc::clone(&device));
        let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let mut framework = Self { frontend, handler, device, fd };
        for (request, payload) in [
            (R::GET_FEATURES, &[][..]),
            (R::SET_FEATURES, &u64::MAX.to_ne_bytes()),
            (R::SET_PROTOCOL_FEATURES, &u64::MAX.to_ne_bytes()),
        ] {
            assert!(framework.takes(request as u32, 1, payload, 0), "{request:?}");
        }
        framework.forget_answers();
        framework
    }

    /// Whether the parser gives the message to its device.
    fn takes(&mut self, request: u32, flags: u32, payload: &[u8], fds: usize) -> bool {
        let size = u32::try_from(payload.len()).expect("a length");
        let mut bytes = [request, flags, size].map(u32::to_ne_bytes).concat();
        bytes.extend_from_slice(payload);
        let mut message = Message::new();
        let fds = (0..fds).map(|_| dup(&self.fd).expect("a descriptor"));
        message.set(&bytes, fds);
        message.admit();
        message.send(self.frontend.as_fd()).expect("room in the socket");
        let _ = self.handler.handle_request();
        self.device.take_asked()
    }

    fn forget_answers(&self) {
        let mut bytes = [0; 4096];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        while rustix::net::recv(&self.frontend, &mut bytes, flags).is_ok_and(|(got, _)| got > 0) {}
    }
}

/// How many descriptors a message is to have.
fn descriptors(request: Option<R>, payload: &[u8]) -> usize {
    let first = payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    match request {
        Some(R::SET_MEM_TABLE) => usize::from(first.to_le_bytes()[0]).min(8),
        Some(R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR) => {
            usize::from(first & 0x100 == 0)
        }
        Some(R::ADD_MEM_REG | R::SET_LOG_BASE | R::SET_DEVICE_STATE_FD | R::SET_INFLIGHT_FD) => 1,
        _ => 0,
    }
}

/// Whether the framework's rules for these messages are all of shape.
fn is_plain(request: R) -> bool {
    matches!(
        request,
        R::GET_FEATURES
            | R::SET_FEATURES
            | R::SET_OWNER
            | R::RESET_OWNER
            | R::RESET_DEVICE
            | R::GET_PROTOCOL_FEATURES
            | R::SET_PROTOCOL_FEATURES
            | R::GET_QUEUE_NUM
            | R::GET_MAX_MEM_SLOTS
            | R::SET_VRING_NUM
            | R::SET_VRING_BASE
            | R::GET_VRING_BASE
            | R::SET_VRING_KICK
            | R::SET_VRING_CALL
            | R::SET_VRING_ERR
    )
}

pub(crate) fn run(input: Input) {
    let code = input.wide.unwrap_or(u32::from(input.request) % 48);
    let flags = match input.flags {
        Flags::Plain => 1,
        Flags::NeedReply => 9,
        Flags::Any(flags) => flags,
    };
    let mut payload: Vec<u8> = input.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    payload.extend_from_slice(&input.rest);
    payload.truncate(4096);
    let request = R::try_from(code).ok();
    if let (Some(count), Some(request)) = (input.count, request) {
        let at = usize::from(matches!(request, R::GET_CONFIG | R::SET_CONFIG)) * 4;
        if let Some(place) = payload.get_mut(at..at + 4) {
            place.copy_from_slice(&u32::from(count).to_ne_bytes());
        }
    }

    let ours = validate::check(code, flags, &payload);
    FRAMEWORK.with_borrow_mut(|framework| {
        let mut theirs = framework.take().unwrap_or_else(Framework::new);
        let taken = theirs.takes(code, flags, &payload, descriptors(request, &payload));
        match ours {
            Ok(()) => {
                let request = request.expect("a message that has no name passes");
                assert!(taken || !is_plain(request), "{request:?} passes, and is not understood");
            }
            Err(ShapeError::Queue { queue, .. }) => {
                // The framework counts 256 queues in a byte, or leaves it to the device.
                assert!(queue >= 5, "queue {queue} is there");
            }
            Err(ShapeError::QueueSize { size, .. }) => {
                assert!(!(1..=32768).contains(&size) || size.count_ones() != 1, "{size} is a size");
            }
            // An answer in place of a request: the parser looks for it where it looks for a size.
            Err(ShapeError::Flags { flags, .. }) if flags & 4 != 0 => {
                assert!(!taken || !request.is_some_and(is_plain), "{flags:#x} is understood");
            }
            Err(error) => assert!(!taken, "{error}, and the framework takes it"),
        }
        // A parser that has failed may have left a part of the message; another has negotiated again.
        let negotiates = matches!(request, Some(R::SET_FEATURES | R::SET_PROTOCOL_FEATURES));
        if taken && !negotiates {
            theirs.forget_answers();
            *framework = Some(theirs);
        }
    });
}
