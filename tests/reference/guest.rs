// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with the driver of its guest: what it does for a step, and what it gets for that.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::{BalloonConfig, BalloonQueue};
use guest_driver::virtio::ring::{Buffer, Used};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use vhost::VhostBackend;
use vmm_integration::frontend::{AttachOptions, Attachment, ControlMessage, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::{END, PAGE, Span, address};
use crate::model::FullCall;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Where things lie in the scratch area, in bytes.
const LIST: u64 = 0;
const BITMAP: u64 = 0x2000;
const COMMAND: u64 = 0x3000;
const STATISTICS: u64 = 0x4000;
/// A tag and a value.
const STATISTICS_BYTES: u32 = 10;
const PFN_BYTES: u64 = 4;

/// The VMM and its guest.
pub(crate) struct Guest {
    /// None for a moment only.
    attachment: Option<Attachment>,
    pub(crate) ram: Ram,
    log: Option<DirtyLog>,
    /// The other end of a call descriptor that is full.
    full: Vec<OwnedFd>,
}

fn len(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap()
}

fn buffers(spans: &[Span]) -> Vec<Buffer> {
    let bytes = spans.iter().map(Span::bytes);
    bytes.map(|(start, bytes)| Buffer::writable(Gpa(start), len(bytes))).collect()
}

impl Guest {
    pub(crate) fn boot(socket: &Path) -> Self {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: TIMEOUT, ..AttachOptions::default() };
        let attachment = Some(Attachment::connect(socket, &ram, options).unwrap());
        let mut guest = Self { attachment, ram, log: None, full: Vec::new() };
        guest.offer_statistics();
        guest
    }

    pub(crate) fn attachment(&mut self) -> &mut Attachment {
        self.attachment.as_mut().unwrap()
    }

    fn index(&mut self, queue: BalloonQueue) -> u16 {
        self.attachment().index(queue).unwrap()
    }

    fn scratch(&mut self, at: u64) -> Gpa {
        Gpa(self.attachment().scratch().start().0 + at)
    }

    fn add(&mut self, queue: BalloonQueue, buffers: &[Buffer]) {
        let index = self.index(queue);
        self.attachment().ring(index).unwrap().add_chain(buffers).unwrap();
        self.attachment().publish(index).unwrap();
    }

    /// Waits until a chain is returned, by its notification.
    fn returned(&mut self, queue: BalloonQueue) -> Used {
        let index = self.index(queue);
        let used = self.attachment().wait_used(index, TIMEOUT).unwrap();
        let used = used.unwrap_or_else(|| panic!("a chain of {queue:?} is not returned"));
        self.check_log(queue);
        used
    }

    /// While dirty pages are logged, the page of the used ring is one of them, and none that the device
    /// has no business with. A page is logged right after it was written, and what is written may be seen before.
    fn check_log(&mut self, queue: BalloonQueue) {
        let Some(log) = self.log.take() else { return };
        let mut pages = |index| {
            let ring = self.attachment().ring(index).unwrap();
            Gpa(ring.layout().used().0 / PAGE * PAGE)
        };
        let all: Vec<_> = (0..5).map(&mut pages).collect();
        let index = self.index(queue);
        let bitmap = self.scratch(BITMAP);
        let mut owed = vec![all[usize::from(index)]];
        if queue == BalloonQueue::Inflate {
            owed.push(bitmap);
        }
        let until = Instant::now() + TIMEOUT;
        while !owed.is_empty() {
            let dirty = log.take().unwrap();
            let expected = |page: &Gpa| all.contains(page) || *page == bitmap;
            assert!(
                dirty.iter().all(expected),
                "pages are logged that were not written: {dirty:?}"
            );
            owed.retain(|page| !dirty.contains(page));
            assert!(Instant::now() < until, "{owed:?} were written and are not logged");
        }
        self.log = Some(log);
    }

    pub(crate) fn write(&self, page: usize, generation: u16) {
        let range = GpaRange::new(Gpa(address(page)), PAGE).unwrap();
        self.ram.write_pattern(range, generation).unwrap();
    }

    /// Reports, and returns how many bytes are claimed to be zero.
    pub(crate) fn report(&mut self, spans: &[Span]) -> u32 {
        self.offer_report(spans);
        self.reported()
    }

    /// Reports, whether there is a daemon or not.
    pub(crate) fn offer_report(&mut self, spans: &[Span]) {
        self.add(BalloonQueue::Reporting, &buffers(spans));
    }

    pub(crate) fn reported(&mut self) -> u32 {
        self.returned(BalloonQueue::Reporting).len
    }

    fn list(&mut self, spans: &[Span]) -> Buffer {
        let pfns = spans.iter().flat_map(Span::pfns);
        let list: Vec<u8> =
            pfns.flat_map(|pfn| u32::try_from(pfn).unwrap().to_le_bytes()).collect();
        let at = self.scratch(LIST);
        self.ram.write(at, &list).unwrap();
        Buffer::readable(at, len(list.len() as u64))
    }

    /// Inflates, and returns which of the pages are said to be initialized.
    pub(crate) fn inflate(&mut self, spans: &[Span]) -> Vec<bool> {
        let list = self.list(spans);
        let pages = usize::try_from(u64::from(list.len) / PFN_BYTES).unwrap();
        let mut bits = vec![0xff; pages.div_ceil(8)];
        let at = self.scratch(BITMAP);
        self.ram.write(at, &bits).unwrap();
        let bitmap = Buffer::writable(at, len(bits.len() as u64));
        self.add(BalloonQueue::Inflate, &[list, bitmap]);
        let used = self.returned(BalloonQueue::Inflate).len;
        assert_eq!(used, bitmap.len, "the used length is that of the bitmap");
        self.ram.read(at, &mut bits).unwrap();
        (0..pages).map(|page| bits[page / 8] >> (page % 8) & 1 == 1).collect()
    }

    pub(crate) fn deflate(&mut self, spans: &[Span]) {
        let list = self.list(spans);
        self.add(BalloonQueue::Deflate, &[list]);
        self.returned(BalloonQueue::Deflate);
    }

    /// Sends back the command of the configuration space, or another.
    pub(crate) fn send_command(&mut self, other: Option<u32>) {
        let command = other.unwrap_or_else(|| self.config().free_page_hint_cmd_id);
        let at = self.scratch(COMMAND);
        self.ram.write(at, &command.to_le_bytes()).unwrap();
        self.add(BalloonQueue::FreePage, &[Buffer::readable(at, 4)]);
        self.returned(BalloonQueue::FreePage);
    }

    pub(crate) fn hint(&mut self, spans: &[Span]) {
        self.add(BalloonQueue::FreePage, &buffers(spans));
        self.returned(BalloonQueue::FreePage);
    }

    pub(crate) fn config(&mut self) -> BalloonConfig {
        self.attachment().get_config().unwrap()
    }

    pub(crate) fn set_poison(&mut self, value: u32) {
        self.attachment().set_poison(value).unwrap();
    }

    /// Takes what the driver was told so far.
    pub(crate) fn forget_changes(&mut self) {
        while self.is_told(Duration::ZERO) {}
    }

    pub(crate) fn is_told(&mut self, within: Duration) -> bool {
        self.attachment().wait_config_change(within).unwrap()
    }

    fn offer_statistics(&mut self) {
        let at = self.scratch(STATISTICS);
        self.add(BalloonQueue::Stats, &[Buffer::readable(at, STATISTICS_BYTES)]);
    }

    /// The device asks for statistics, and gets other ones.
    pub(crate) fn give_statistics(&mut self) {
        self.returned(BalloonQueue::Stats);
        self.offer_statistics();
    }

    /// Whether the device asks for statistics now.
    pub(crate) fn is_asked_for_statistics(&mut self) -> bool {
        let index = self.index(BalloonQueue::Stats);
        let ring = self.attachment().ring(index).unwrap();
        ring.used_idx().unwrap() != ring.next_used()
    }

    pub(crate) fn migrate(&mut self, on: bool) {
        if on {
            let log = DirtyLog::new(Gpa(END)).unwrap();
            self.attachment().set_log(&log).unwrap();
            self.attachment().set_logging(true).unwrap();
            self.log = Some(log);
        } else {
            self.attachment().set_logging(false).unwrap();
            self.log = None;
        }
    }

    pub(crate) fn seal(&self) {
        fcntl_add_seals(self.ram.file(1), SealFlags::FUTURE_WRITE).unwrap();
    }

    pub(crate) fn reconnect(&mut self, socket: &Path) {
        let attachment = self.attachment.take().unwrap().reconnect(socket);
        self.attachment = Some(attachment.unwrap());
    }

    /// Reports with a call descriptor that has no room. The chain is returned all the same.
    pub(crate) fn report_to_full_call(&mut self, call: FullCall, span: Span) -> u32 {
        let index = self.index(BalloonQueue::Reporting);
        let full = self.full_call(call);
        let number = usize::from(index);
        let attachment = self.attachment();
        attachment.control("set vring call", |f| f.set_vring_call(number, &full)).unwrap();
        self.offer_report(&[span]);
        let until = Instant::now() + TIMEOUT;
        let used = loop {
            match self.attachment().ring(index).unwrap().pop_used().unwrap() {
                Some(used) => break used.len,
                None => assert!(Instant::now() < until, "a chain is not returned"),
            }
            std::thread::yield_now();
        };
        self.check_log(BalloonQueue::Reporting);
        // The one that it had.
        ControlMessage::SetVringCall.send(self.attachment(), index, 0).unwrap();
        self.full.clear();
        used
    }

    fn full_call(&mut self, call: FullCall) -> EventFd {
        let fd = match call {
            FullCall::Eventfd => {
                let full = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
                rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
                full
            }
            FullCall::Pipe => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
                while rustix::io::write(&write, &[0; 4096]) != Err(Errno::AGAIN) {}
                self.full.push(read);
                write
            }
        };
        let raw = fd.as_raw_fd();
        std::mem::forget(fd);
        // SAFETY: no other owner closes it.
        unsafe { EventFd::from_raw_fd(raw) }
    }
}
