// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Steps of a session that a VMM does only where they make sense, or that need more than one message.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use vhost::vhost_user::message::FrontendReq as R;

use super::frontend::{Ended, longs, words};
use super::memory::{PAGE, PAGES, REGIONS, Region, Table, user};
use super::ring::{Chain, parts};
use super::session::{Session, event};
use super::step::{Features, Named, Odd};
use crate::vhost_user::device_state::decode;

const LOG_ALL: u64 = 1 << 26;
const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
const NO_FD: u64 = 1 << 8;

fn number(queue: usize) -> u32 {
    u32::try_from(queue).expect("a queue")
}

impl Session {
    /// The driver adds a chain to its ring, if the device knows that, and kicks.
    pub(super) fn add_chain(&mut self, queue: usize, named: &Named, silent: bool) {
        let oracle = &mut self.oracle;
        let Some(page) = oracle.ring_page(queue) else { return };
        let (Some(gpa), Some(ring)) = (oracle.queues[queue].place, oracle.rings.get_mut(&page))
        else {
            return;
        };
        let range = |(page, pages, odd, inside): &(u8, u8, i8, bool)| {
            let start = (u64::from(*page) % (PAGES + 2)) * PAGE + if *inside { 1 } else { 0 };
            let len = (u64::from(*pages % 12) * PAGE).saturating_add_signed((*odd).into());
            (start, len)
        };
        let chain = Chain {
            ranges: named.ranges.iter().take(3).map(range).collect(),
            pfns: named.pfns.iter().take(16).map(|pfn| u32::from(*pfn) % 48).collect(),
        };
        ring.add(&self.files, page, gpa, chain);
        if !silent {
            self.kick(queue);
        }
    }

    pub(super) fn kick(&mut self, queue: usize) {
        let queue = &mut self.oracle.queues[queue];
        if let Some(kick) = &queue.kick {
            rustix::io::write(kick, &1_u64.to_ne_bytes()).expect("an eventfd");
            queue.woken |= queue.runs();
        }
    }

    /// Not of a queue that was started: its ring would be another one.
    pub(super) fn set_size(&mut self, queue: usize, size: u16) -> Result<(), Ended> {
        if !self.oracle.queues[queue].ready {
            let payload = words(&[number(queue), size.into()]);
            if self.frontend.set(R::SET_VRING_NUM, &payload, &[])? {
                self.oracle.queues[queue].size = size;
            }
        }
        Ok(())
    }

    pub(super) fn set_place(&mut self, queue: usize, place: u8) -> Result<(), Ended> {
        // Each queue has two pages.
        let gpa = (queue as u64 + 5 * u64::from(place % 2)) * PAGE;
        let before = self.oracle.queues[queue].place.replace(gpa);
        let other = before != Some(gpa);
        if other && self.oracle.queues[queue].ready {
            self.oracle.prepare(&self.files, queue);
        }
        let [table, avail, used] = parts(gpa).map(user);
        let payload = [words(&[number(queue), 0]), longs(&[table, used, avail, 0])].concat();
        let taken = self.frontend.set(R::SET_VRING_ADDR, &payload, &[])?;
        let ready = self.oracle.queues[queue].ready;
        if !taken {
            self.oracle.queues[queue].place = before;
        } else if other && ready {
            // It goes on there, and is not woken.
            let woken = self.oracle.queues[queue].woken;
            self.oracle.began(queue);
            self.oracle.queues[queue].woken = woken;
        }
        Ok(())
    }

    /// Passes an event, or that there is none.
    pub(super) fn pass_event(
        &self,
        request: R,
        queue: usize,
        event: Option<&OwnedFd>,
    ) -> Result<bool, Ended> {
        let none = if event.is_none() { NO_FD } else { 0 };
        let fds: Vec<_> = event.iter().map(|event| event.as_fd()).collect();
        self.frontend.set(request, &longs(&[queue as u64 | none]), &fds)
    }

    /// Starts a queue of which it was told where its ring lies.
    pub(super) fn set_kick(&mut self, queue: usize, some: bool) -> Result<(), Ended> {
        if some && self.oracle.queues[queue].place.is_none() {
            return Ok(());
        }
        if some {
            self.oracle.prepare(&self.files, queue);
        }
        let kick = some.then(event);
        if self.pass_event(R::SET_VRING_KICK, queue, kick.as_ref())? {
            self.oracle.queues[queue].kick = kick;
            self.oracle.queues[queue].ready = some;
            if some {
                self.oracle.began(queue);
            } else {
                self.oracle.queues[queue].kept = false;
            }
        }
        Ok(())
    }

    pub(super) fn stop(&mut self, queue: usize) -> Result<(), Ended> {
        let answer = self.frontend.number(R::GET_VRING_BASE, &words(&[number(queue), 0]), &[])?;
        let page = self.oracle.ring_page(queue);
        let stopped = &mut self.oracle.queues[queue];
        if let Some(ring) = page.and_then(|page| self.oracle.rings.get(&page))
            && stopped.ready
            && stopped.begun_on == page
        {
            assert_eq!(
                answer >> 32,
                ring.used as u64,
                "a stopped queue goes on elsewhere: {ring:?}"
            );
        }
        (stopped.ready, stopped.kept, stopped.woken) = (false, false, false);
        (stopped.kick, stopped.call) = (None, None);
        Ok(())
    }

    pub(super) fn set_features(&mut self, features: Features) -> Result<(), Ended> {
        let bit = |has: bool, bit: u64| if has { bit } else { 0 };
        let wanted = u64::from(features.device)
            | bit(features.logs, LOG_ALL)
            | bit(features.event_idx, EVENT_IDX)
            | bit(!features.no_protocol, PROTOCOL)
            | VERSION_1;
        let acked = wanted & self.offered;
        // It may serve before it knows all of them.
        self.exact = false;
        if acked & PROTOCOL == 0 {
            for queue in 0..5 {
                if !self.oracle.queues[queue].enabled {
                    self.oracle.prepare(&self.files, queue);
                }
            }
        }
        if self.frontend.set(R::SET_FEATURES, &longs(&[acked]), &[])? {
            if acked & PROTOCOL == 0 {
                self.oracle.enable_all(true);
            }
            self.oracle.features = acked;
            self.oracle.event_idx |= acked & EVENT_IDX != 0;
            self.oracle.migrating = acked & LOG_ALL != 0;
        }
        Ok(())
    }

    /// Whether rings that run stay where they are.
    fn keeps_rings(&self, next: &Table) -> bool {
        self.oracle.queues.iter().filter(|queue| queue.runs()).all(|queue| {
            let page = queue.place.and_then(|gpa| next.page(gpa));
            page.is_none() || page == queue.begun_on
        })
    }

    pub(super) fn set_table(&mut self, regions: u8) -> Result<(), Ended> {
        let chosen = REGIONS.iter().enumerate().filter(|(at, _)| regions >> at & 1 == 1);
        let mut next = Table(chosen.map(|(_, region)| *region).collect());
        if regions & 0x80 != 0 {
            next.0.reverse();
        }
        if !self.keeps_rings(&next) {
            return Ok(());
        }
        let mut payload = words(&[number(next.0.len()), 0]);
        payload.extend(next.0.iter().flat_map(Region::bytes));
        let fds: Vec<_> = next.0.iter().map(|region| self.files.fd(region.file)).collect();
        if self.frontend.set(R::SET_MEM_TABLE, &payload, &fds)? {
            next.check();
            self.oracle.table = next;
        }
        Ok(())
    }

    pub(super) fn add_region(&mut self, region: u8, odd: Option<Odd>) -> Result<(), Ended> {
        let mut region = REGIONS[usize::from(region) % REGIONS.len()];
        if let Some(odd) = odd {
            region.gpa = region.gpa.wrapping_add_signed(odd.gpa.into());
            region.bytes = region.bytes.wrapping_add_signed(odd.bytes.into());
            region.offset = region.offset.wrapping_add_signed(odd.offset.into());
        }
        let mut next = self.oracle.table.clone();
        next.0.push(region);
        if !self.keeps_rings(&next) {
            return Ok(());
        }
        let payload = [longs(&[0]), region.bytes()].concat();
        if self.frontend.set(R::ADD_MEM_REG, &payload, &[self.files.fd(region.file)])? {
            next.check();
            self.oracle.table = next;
        }
        Ok(())
    }

    pub(super) fn remove_region(&mut self, region: u8) -> Result<(), Ended> {
        let regions = &self.oracle.table.0;
        let Some(at) = usize::from(region).checked_rem(regions.len()) else { return Ok(()) };
        let payload = [longs(&[0]), regions[at].bytes()].concat();
        if self.frontend.set(R::REM_MEM_REG, &payload, &[])? {
            self.oracle.table.0.remove(at);
        }
        Ok(())
    }

    /// The device is as for a new driver; a migration goes on.
    pub(super) fn reset(&mut self) {
        self.oracle.enable_all(false);
        self.oracle.features = 0;
    }

    pub(super) fn save(&mut self) -> Result<(), Ended> {
        let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
        let answer =
            self.frontend.number(R::SET_DEVICE_STATE_FD, &words(&[0, 0]), &[theirs.as_fd()])?;
        drop(theirs);
        let mut saved = Vec::new();
        File::from(ours).read_to_end(&mut saved).expect("a pipe");
        let checked = self.frontend.number(R::CHECK_DEVICE_STATE, &[], &[])?;
        if answer == NO_FD && checked == 0 {
            let found = decode(&saved).expect("a state");
            assert_eq!(found, self.state.balloon.save(), "another state than the device's");
            self.saved = saved;
        }
        Ok(())
    }

    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let (theirs, ours) = rustix::pipe::pipe().expect("a pipe");
        let answer =
            self.frontend.number(R::SET_DEVICE_STATE_FD, &words(&[1, 0]), &[theirs.as_fd()])?;
        drop(theirs);
        if answer == NO_FD {
            // One that is not read does not matter.
            let _ = File::from(ours).write_all(bytes);
            let before = self.state.balloon.save();
            if self.frontend.number(R::CHECK_DEVICE_STATE, &[], &[])? == 0 {
                self.oracle.features = self.state.balloon.acked_features().unwrap_or(0);
            } else {
                assert_eq!(self.state.balloon.save(), before, "a state that is refused changes it");
            }
        }
        Ok(())
    }
}
