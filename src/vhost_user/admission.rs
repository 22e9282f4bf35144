// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of a frontend's messages and descriptors is let in: the one place that decides it, before
//! the framework sees anything.
//!
//! A descriptor is judged by its kind, its file system, its size and its alignment, without waiting
//! for whatever serves it. The flags of a descriptor are the frontend's, too, and none is changed.

use std::os::fd::AsFd;

use log::warn;
use rustix::process::{Resource, getrlimit};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::areas::{Area, Areas, MOST_AREAS};
use super::descriptor::Kind;
use super::error::{MessageError, Refusal, Refused};
use super::file_system;
use super::message::Message;
use crate::device::features::NUM_QUEUES;
use crate::discard::MemoryOptions;
use crate::logging::report;

/// A message that is not passed on.
pub(super) struct Denied {
    /// Why the connection ends; none if it goes on without the message.
    pub(super) end: Option<MessageError>,
    /// Whether the frontend waits for an answer.
    pub(super) is_answered: bool,
}

/// Messages of this daemon's own that go to the framework ahead of the frontend's.
pub(super) type Ahead = Vec<Vec<u8>>;

/// Descriptors that regions leave to everything else: operators' connections (two sockets, 32 each),
/// connections that wait (8), those of a message in flight (32) and of queues, and some 30 of the
/// daemon's own.
const RESERVED_DESCRIPTORS: u64 = 160;

/// What a frontend has been let in with so far.
#[derive(Debug)]
pub(super) struct Admission {
    options: MemoryOptions,
    areas: Areas,
    protocol_features: u64,
    owned: bool,
    /// The first message of this device that was refused: the cause of those that follow.
    refused: Option<Refused>,
    /// There is a queue that may be too small, as was said.
    is_small: bool,
    /// The queues whose rings lie nowhere: none of them is started.
    lost: [bool; NUM_QUEUES],
}

impl Admission {
    pub(super) fn new(options: MemoryOptions) -> Self {
        // Each region keeps a descriptor, and everything else needs some, too.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let limit = limit.saturating_sub(RESERVED_DESCRIPTORS).max(limit / 4);
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(MOST_AREAS);
        Self {
            options,
            areas: Areas::new(most),
            protocol_features: 0,
            owned: false,
            refused: None,
            is_small: false,
            lost: [false; NUM_QUEUES],
        }
    }

    /// Lets a message in, or not. It may come to be another one that means the same.
    ///
    /// # Errors
    /// [`Denied`]
    pub(super) fn check(&mut self, message: &mut Message) -> Result<Ahead, Denied> {
        let checked = message.check().map_err(MessageError::Shape);
        let refusal = match checked.map(|()| self.admit(message)) {
            Ok(Ok(ahead)) => return Ok(ahead),
            Ok(Err(refusal)) => refusal,
            Err(error) => return Err(self.deny(message, Some(error))),
        };
        let is_first = self.refused.is_none();
        self.refused.get_or_insert_with(|| Refused::new(&refusal));
        if !goes_on(message, &refusal) {
            return Err(self.deny(message, Some(refusal.into())));
        }
        if is_first {
            report("the frontend is set up wrongly, its device is not served", &refusal);
        }
        Err(self.deny(message, None))
    }

    /// Why this device is not served, if it is not.
    pub(super) fn refused(&self) -> Option<&Refused> {
        self.refused.as_ref()
    }

    fn deny(&self, message: &Message, end: Option<MessageError>) -> Denied {
        let reply_ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
        let is_answered = message.wants_reply() && self.protocol_features & reply_ack != 0;
        Denied { end, is_answered }
    }

    fn admit(&mut self, message: &mut Message) -> Result<Ahead, Refusal> {
        use FrontendReq as R;
        let Ok(request) = R::try_from(message.request()) else { return Ok(Ahead::new()) };
        match request {
            R::SET_OWNER => {
                none(request, message)?;
                return Ok(self.begin());
            }
            R::SET_PROTOCOL_FEATURES => {
                none(request, message)?;
                let features = message.number(0);
                if features & VhostUserProtocolFeatures::CONFIG.bits() == 0 {
                    return Err(Refusal::NoConfig);
                }
                self.protocol_features = features;
            }
            R::SET_MEM_TABLE => self.replace(message)?,
            R::ADD_MEM_REG => self.add(message)?,
            R::REM_MEM_REG => {
                // One may come, and is "closed without using it otherwise".
                message.drop_fds();
                if let Some(gone) = message.payload().get(8..).and_then(Area::read) {
                    self.areas.remove(gone);
                }
            }
            R::SET_VRING_ADDR => {
                none(request, message)?;
                let queue = usize::try_from(message.first_word()).unwrap_or(usize::MAX);
                let rings = [message.number(1), message.number(2), message.number(3)];
                let is_lost = !rings.iter().all(|at| self.areas.hold_user(*at));
                if let Some(lost) = self.lost.get_mut(queue) {
                    *lost = is_lost;
                }
                self.expect_rings(queue)?;
            }
            R::SET_VRING_NUM => {
                none(request, message)?;
                let [queue, size] = message.pair();
                if size < REPORTING_SIZE && !std::mem::replace(&mut self.is_small, true) {
                    warn!(
                        "queue {queue} has {size} descriptors: the driver of an older Linux gives \
                         the device up if its reporting queue has fewer than {REPORTING_SIZE} (vq_size)"
                    );
                }
            }
            R::SET_LOG_BASE => log(message)?,
            R::SET_VRING_KICK | R::SET_VRING_ERR => {
                let [queue, ..] = message.number(0).to_le_bytes();
                self.expect_rings(queue.into())?;
                let expected = usize::from(message.number(0) & NO_FD == 0);
                number(request, message, expected, "")?;
                each(request, message, "an eventfd", |kind| kind == Kind::EventFd)?;
            }
            R::SET_VRING_CALL => {
                let expected = usize::from(message.number(0) & NO_FD == 0);
                number(request, message, expected, "")?;
                each(request, message, "an eventfd, a pipe or a Unix socket", |kind| {
                    kind.is_unix() || matches!(kind, Kind::EventFd | Kind::Pipe)
                })?;
            }
            R::SET_VRING_ENABLE => {
                none(request, message)?;
                self.expect_rings(usize::try_from(message.first_word()).unwrap_or(usize::MAX))?;
            }
            R::SET_BACKEND_REQ_FD => {
                number(request, message, 1, "")?;
                each(request, message, CHANNEL, |kind| kind == Kind::UnixStream)?;
                let connected = message.fds().iter().all(|fd| rustix::net::getpeername(fd).is_ok());
                if !connected {
                    let came = "a Unix stream socket that is not connected".to_owned();
                    return Err(Refusal::Kind { request, came, expected: CHANNEL });
                }
            }
            // The protocol has a failure of its own for a wrong one: the backend says it.
            R::SET_DEVICE_STATE_FD => number(request, message, 1, "")?,
            _ => none(request, message)?,
        }
        message.admit();
        Ok(Ahead::new())
    }

    fn expect_rings(&self, queue: usize) -> Result<(), Refusal> {
        let is_lost = self.lost.get(queue).is_some_and(|lost| *lost);
        if is_lost { Err(Refusal::NotShared { queue }) } else { Ok(()) }
    }

    /// A frontend that takes the device over on a connection that had a device before (QEMU's
    /// `device_del` and `device_add`). The framework takes one owner only, so it is given up first,
    /// with all that belonged to it.
    fn begin(&mut self) -> Ahead {
        let mut ahead = Ahead::new();
        self.lost = [false; NUM_QUEUES];
        self.refused = None;
        if std::mem::replace(&mut self.owned, true) {
            let has =
                |feature: VhostUserProtocolFeatures| self.protocol_features & feature.bits() != 0;
            if has(VhostUserProtocolFeatures::RESET_DEVICE) {
                ahead.push(own(FrontendReq::RESET_DEVICE, &[]));
            }
            let areas = self.areas.take();
            if has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) {
                for area in areas {
                    let payload = [[0; 8].as_slice(), &area.write()].concat();
                    ahead.push(own(FrontendReq::REM_MEM_REG, &payload));
                }
            }
            ahead.push(own(FrontendReq::RESET_OWNER, &[]));
        }
        ahead
    }

    fn region(&self, area: Area, fd: impl AsFd) -> Result<(), Refusal> {
        let what = || format!("the memory region of {area}");
        let file = file_system::admit(fd.as_fd(), self.options.files)
            .map_err(|fault| Refusal::File { what: what(), fault })?;
        area.fits(file).map_err(|fault| Refusal::Area { what: what(), fault })
    }

    fn add(&mut self, message: &Message) -> Result<(), Refusal> {
        number(FrontendReq::ADD_MEM_REG, message, 1, SHARE)?;
        let area = message.payload().get(8..).and_then(Area::read);
        let (Some(area), [fd]) = (area, message.fds()) else { return Ok(()) };
        self.region(area, fd)?;
        let what = || format!("the memory region of {area}");
        self.areas.add(area).map_err(|fault| Refusal::Area { what: what(), fault })
    }

    /// All regions at once. The framework wants them in ascending order and nothing behind them;
    /// the protocol does not, and user-mode Linux sends what it does not use.
    fn replace(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let count = usize::try_from(message.first_word()).unwrap_or(usize::MAX);
        let payload = message.payload().get(8..).unwrap_or_default();
        number(FrontendReq::SET_MEM_TABLE, message, count, SHARE)?;
        let areas: Vec<Area> =
            payload.chunks_exact(32).filter_map(Area::read).take(count).collect();
        let mut order: Vec<usize> = (0..areas.len()).collect();
        order.sort_by_key(|index| areas[*index].gpa);
        self.areas.take();
        for (area, fd) in areas.iter().zip(message.fds()) {
            self.region(*area, fd)?;
            let what = || format!("the memory region of {area}");
            self.areas.add(*area).map_err(|fault| Refusal::Area { what: what(), fault })?;
        }
        let mut sorted = message.payload().get(..8).unwrap_or_default().to_vec();
        for index in &order {
            sorted.extend_from_slice(&areas[*index].write());
        }
        message.rewrite(&sorted, &order);
        Ok(())
    }
}

/// Whether the connection goes on without a message: QEMU 11.1 aborts if its backend hangs up on
/// the device while it starts (`memory_region_del_eventfd: Assertion`). Told that the memory or the
/// kick of a queue failed, it says so and the guest goes on without the device.
fn goes_on(message: &Message, refusal: &Refusal) -> bool {
    use FrontendReq as R;
    let request = R::try_from(message.request());
    let is_memory = matches!(request, Ok(R::SET_MEM_TABLE | R::ADD_MEM_REG));
    match refusal {
        Refusal::Number { .. } | Refusal::File { .. } | Refusal::Area { .. } => is_memory,
        Refusal::NotShared { .. } => true,
        _ => false,
    }
}

/// What the driver of an older Linux wants of the reporting queue (`PAGE_REPORTING_CAPACITY`); its
/// probe fails with `ENOSPC` otherwise. That of 7.2 does with fewer.
const REPORTING_SIZE: u32 = 32;

/// There is no descriptor, and the queue is not to be watched or told.
const NO_FD: u64 = 1 << 8;

const CHANNEL: &str = "a connected Unix stream socket";

const SHARE: &str = ", one a region: add share=on to the guest's memory backend";

/// A message as a frontend would send it that wants no answer.
fn own(request: FrontendReq, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = [request as u32, 1, size].map(u32::to_ne_bytes).concat();
    bytes.extend_from_slice(payload);
    bytes
}

fn none(request: FrontendReq, message: &Message) -> Result<(), Refusal> {
    number(request, message, 0, "")
}

fn number(
    request: FrontendReq,
    message: &Message,
    expected: usize,
    hint: &'static str,
) -> Result<(), Refusal> {
    let came = message.fds().len();
    if came == expected { Ok(()) } else { Err(Refusal::Number { request, came, expected, hint }) }
}

fn each(
    request: FrontendReq,
    message: &Message,
    expected: &'static str,
    is_good: impl Fn(Kind) -> bool,
) -> Result<(), Refusal> {
    for fd in message.fds() {
        let kind = Kind::of(fd.as_fd());
        if !is_good(kind) {
            return Err(Refusal::Kind { request, came: kind.to_string(), expected });
        }
    }
    Ok(())
}

/// A dirty log is written at any time, so all of it has to be there.
fn log(message: &Message) -> Result<(), Refusal> {
    number(FrontendReq::SET_LOG_BASE, message, 1, "")?;
    let [fd] = message.fds() else { return Ok(()) };
    let area = Area { gpa: 0, user: 0, bytes: message.number(0), offset: message.number(1) };
    let what = || format!("the dirty log of {} bytes", area.bytes);
    let file = file_system::admit(fd.as_fd(), false)
        .map_err(|fault| Refusal::File { what: what(), fault })?;
    area.fits(file).map_err(|fault| Refusal::Area { what: what(), fault })
}

#[cfg(test)]
mod exhaustive;
