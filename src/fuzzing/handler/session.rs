// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps of a session, as a VMM does them: it tells where a ring lies before it starts a queue, and
//! puts no other memory under a ring that runs.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{FrontendReq as R, VhostUserProtocolFeatures as P};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use super::frontend::{Ended, Frontend, longs, words};
use super::memory::{Files, PAGE, PAGES, Table};
use super::oracle::Oracle;
use super::step::{Input, Step};
use crate::device::DeviceOptions;
use crate::discard::{Cause, GuestRange, MemoryOptions};
use crate::state::State;

thread_local! {
    static FILES: std::rc::Rc<Files> = std::rc::Rc::new(Files::new());
}

const OPTIONAL: [P; 5] =
    [P::CONFIGURE_MEM_SLOTS, P::BACKEND_REQ, P::LOG_SHMFD, P::RESET_DEVICE, P::DEVICE_STATE];

pub(super) struct Session {
    pub(super) files: std::rc::Rc<Files>,
    pub(super) state: Arc<State>,
    pub(super) frontend: Frontend,
    pub(super) ended: EventFd,
    pub(super) oracle: Oracle,
    pub(super) offered: u64,
    pub(super) protocol: u64,
    pub(super) pinned: Vec<GuestRange>,
    pub(super) saved: Vec<u8>,
    pub(super) channels: Vec<UnixStream>,
    /// Nothing else changed while the worker served.
    pub(super) exact: bool,
}

pub(super) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// A queue of those that there are.
fn at(queue: u8) -> usize {
    usize::from(queue % 5)
}

/// Messages of other devices, and what this one does not offer.
const OTHERS: [u32; 17] = [0, 19, 20, 22, 23, 26, 27, 29, 31, 32, 33, 35, 39, 40, 41, 44, 45];

impl Session {
    pub(super) fn new(offers: u8) -> Self {
        let has = |bit: u8| offers >> bit & 1 == 1;
        let device = DeviceOptions {
            statistics: has(0),
            free_page_hints: has(1),
            reporting: !has(2),
            must_tell_host: has(3),
            deflate_on_oom: has(4),
            ..DeviceOptions::default()
        };
        let files = FILES.with(std::rc::Rc::clone);
        files.clear();
        let state = Arc::new(State::new(device, MemoryOptions::default()));
        let ended = EventFd::new(EFD_CLOEXEC).expect("an eventfd");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let signal = ended.try_clone().expect("a descriptor");
        crate::vhost_user::Session::start(|| Ok((theirs, None)), signal, &state)
            .expect("a session");
        let _ = crate::discard::recorded::take();
        Self {
            files,
            state,
            frontend: Frontend(ours),
            ended,
            oracle: Oracle::default(),
            offered: 0,
            protocol: 0,
            pinned: Vec::new(),
            saved: Vec::new(),
            channels: Vec::new(),
            exact: true,
        }
    }

    /// What every frontend says first.
    pub(super) fn begin(&mut self, input: &Input) -> Result<(), Ended> {
        self.offered = self.frontend.number(R::GET_FEATURES, &[], &[])?;
        self.frontend.ask(R::GET_PROTOCOL_FEATURES, &[], &[])?;
        self.protocol = (P::CONFIG | P::MQ | P::REPLY_ACK).bits();
        for (bit, feature) in OPTIONAL.iter().enumerate() {
            self.protocol |= if input.protocol >> bit & 1 == 0 { feature.bits() } else { 0 };
        }
        self.frontend.set(R::SET_PROTOCOL_FEATURES, &longs(&[self.protocol]), &[])?;
        self.frontend.set(R::SET_OWNER, &[], &[])?;
        self.step(&Step::SetFeatures(input.features))?;
        self.step(&Step::Table { regions: input.regions })?;
        for queue in (0..5).filter(|queue| input.queues >> queue & 1 == 1) {
            self.step(&Step::SetUp { queue, place: 0, size: 2 })?;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), Ended> {
        let before = self.oracle.features;
        self.exact = true;
        self.act(step)?;
        self.state.probe.ask();
        let config = *self.state.balloon.config();
        self.oracle.harmless = config.poison_is_known() && config.poison_val() == 0;
        self.oracle.settle(&self.files, self.exact, before);
        Ok(())
    }

    /// Hangs up. Nothing is discarded after that, and every page holds what it did.
    pub(super) fn finish(self) {
        drop(self.frontend);
        self.ended.read().expect("the end of the session");
        let late = crate::discard::recorded::take();
        assert!(late.is_empty(), "{late:?} at the end");
        self.files.check();
        for cause in [Cause::Migration, Cause::Postcopy] {
            assert!(!self.state.inhibit.holds(cause), "{cause:?} outlives its frontend");
        }
    }

    fn act(&mut self, step: &Step) -> Result<(), Ended> {
        match step {
            Step::Chain { queue, chain, silent } => self.add_chain(at(*queue), chain, *silent),
            Step::Kick { queue } => self.kick(at(*queue)),
            Step::SetUp { queue, place, size } => {
                for step in [
                    Step::Size { queue: *queue, size: *size },
                    Step::Place { queue: *queue, place: *place },
                    Step::Base { queue: *queue, base: 0 },
                    Step::SetCall { queue: *queue, some: true },
                    Step::SetKick { queue: *queue, some: true },
                    Step::Enable { queue: *queue, on: true },
                ] {
                    self.act(&step)?;
                }
            }
            Step::Size { queue, size } => return self.set_size(at(*queue), 4 << (size % 3)),
            Step::Place { queue, place } => return self.set_place(at(*queue), *place),
            Step::Base { queue, base } => {
                let payload = words(&[(*queue % 5).into(), (*base).into()]);
                self.frontend.set(R::SET_VRING_BASE, &payload, &[])?;
            }
            Step::SetKick { queue, some } => return self.set_kick(at(*queue), *some),
            Step::SetCall { queue, some } => {
                let call = some.then(event);
                if self.pass_event(R::SET_VRING_CALL, at(*queue), call.as_ref())? {
                    self.oracle.queues[at(*queue)].call = call;
                }
            }
            Step::SetErr { queue } => {
                self.pass_event(R::SET_VRING_ERR, at(*queue), Some(&event()))?;
            }
            Step::Enable { queue, on } => {
                let queue = at(*queue);
                if *on && !self.oracle.queues[queue].enabled {
                    self.oracle.prepare(&self.files, queue);
                }
                let payload = words(&[u32::try_from(queue).unwrap_or(0), (*on).into()]);
                // Without the bit queues are enabled by other means.
                if self.frontend.set(R::SET_VRING_ENABLE, &payload, &[])? {
                    self.oracle.enable(queue, *on);
                }
            }
            Step::Stop { queue } => return self.stop(at(*queue)),
            Step::SetFeatures(features) => return self.set_features(*features),
            Step::Table { regions } => return self.set_table(*regions),
            Step::Add { region, odd } => return self.add_region(*region, *odd),
            Step::Remove { region } => return self.remove_region(*region),
            Step::SetConfig { offset, bytes } => {
                let bytes = &bytes[..bytes.len().min(16)];
                let len = u32::try_from(bytes.len()).unwrap_or(0);
                let payload = [words(&[(*offset % 17).into(), len, 0]), bytes.to_vec()].concat();
                self.frontend.set(R::SET_CONFIG, &payload, &[])?;
            }
            Step::GetConfig { offset, len } => {
                let len = len % 17;
                let head = words(&[(*offset % 17).into(), len.into(), 0]);
                let payload = [head, vec![0; len.into()]].concat();
                self.frontend.ask(R::GET_CONFIG, &payload, &[])?;
            }
            Step::LogBase => {
                let log = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("a memfd"));
                log.set_len(PAGE).expect("its size");
                self.frontend.ask(R::SET_LOG_BASE, &longs(&[PAGE, 0]), &[log.as_fd()])?;
                self.oracle.log = Some(log);
            }
            Step::LogFd => {
                self.frontend.send(R::SET_LOG_FD as u32, 0, &[], &[event().as_fd()])?;
                self.frontend.is_there()?;
            }
            Step::ResetDevice => {
                if self.frontend.set(R::RESET_DEVICE, &[], &[])? {
                    self.reset();
                }
            }
            Step::ResetOwner => {
                self.frontend.set(R::RESET_OWNER, &[], &[])?;
            }
            Step::SetOwner => {
                if self.frontend.set(R::SET_OWNER, &[], &[])? {
                    let has = |feature: P| self.protocol & feature.bits() != 0;
                    if has(P::CONFIGURE_MEM_SLOTS) {
                        self.oracle.table = Table::default();
                    }
                    if has(P::RESET_DEVICE) {
                        self.reset();
                    }
                }
            }
            Step::Save => return self.save(),
            Step::Load { saved, bytes } => {
                let saved = saved.then(|| self.saved.clone()).filter(|saved| !saved.is_empty());
                return self.load(saved.as_deref().unwrap_or(&bytes[..bytes.len().min(64)]));
            }
            Step::Channel => {
                let (ours, theirs) = UnixStream::pair().expect("a socket pair");
                self.channels.push(ours);
                self.frontend.set(R::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
            }
            Step::Pause(true) => {
                self.state.inhibit.wait(self.state.inhibit.forbid(Cause::Operator));
                self.oracle.paused = true;
            }
            Step::Pause(false) => {
                self.state.inhibit.lift(Cause::Operator);
                self.oracle.paused = false;
            }
            Step::Pin { page, pages } => {
                let (page, pages) = (u64::from(*page) % PAGES, 1 + u64::from(*pages % 8));
                let range = GuestRange::new(page * PAGE, pages * PAGE).expect("a range");
                if self.state.inhibit.pin(range).is_ok() {
                    self.pinned.push(range);
                    self.oracle.pins.extend((page..page + pages).map(|page| page * PAGE));
                }
            }
            Step::Unpin => {
                for range in self.pinned.drain(..) {
                    self.state.inhibit.unpin(range).expect("what was pinned");
                }
                self.oracle.pins.clear();
            }
            Step::AskStatistics => {
                if let Some(frontend) = self.state.frontend() {
                    frontend.poll_statistics().expect("a worker");
                }
            }
            Step::Other { request, payload, fd } => {
                let request = OTHERS[usize::from(*request) % OTHERS.len()];
                let payload = &payload[..payload.len().min(64)];
                let event = event();
                let fds = if *fd { vec![event.as_fd()] } else { Vec::new() };
                self.frontend.send(request, 0, payload, &fds)?;
                self.frontend.is_there()?;
            }
        }
        Ok(())
    }
}
