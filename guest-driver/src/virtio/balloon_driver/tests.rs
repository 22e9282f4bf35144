// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queues against the naive device, which works while it is kicked.

use std::cell::RefCell;
use std::rc::Rc;
use std::{vec, vec::Vec};

use super::*;
use crate::page_alloc::{Pfn, PfnRange};
use crate::ram::{Gpa, GuestRam};
use crate::reporting::{ReportError, ReportSink};
use crate::virtio::layout::{Descriptor, RingLayout};
use crate::virtio::ring::DriverRing;
use crate::virtio::ring::naive_device::{NaiveDevice, VecRam};

const BUFFER: Gpa = Gpa(0x8000);
const SHORT: Option<Duration> = Some(Duration::from_millis(1));

/// A device and its notifications.
struct Host<'a> {
    device: NaiveDevice<'a, VecRam>,
    ram: &'a VecRam,
    /// Keeps what it takes.
    withholds: bool,
    /// The used length of what it gives back.
    used_len: u32,
    /// What it writes where ahead of that.
    writes: Option<(Gpa, Vec<u8>)>,
    kept: Vec<u16>,
    seen: Vec<Vec<Descriptor>>,
    kicks: usize,
    notified: bool,
}

impl Host<'_> {
    fn give_back(&mut self, head: u16) {
        if let Some((at, bytes)) = &self.writes {
            self.ram.write(*at, bytes).unwrap();
        }
        self.notified |= self.device.give_back(u32::from(head), self.used_len);
    }

    fn give_back_all(&mut self) {
        for head in std::mem::take(&mut self.kept) {
            self.give_back(head);
        }
    }
}

#[derive(Clone)]
struct Wire<'a>(Rc<RefCell<Host<'a>>>);

impl Notify for Wire<'_> {
    fn kick(&mut self) {
        let mut host = self.0.borrow_mut();
        host.kicks += 1;
        while let Some((head, chain)) = host.device.take() {
            host.seen.push(chain);
            if host.withholds {
                host.kept.push(head);
            } else {
                host.give_back(head);
            }
        }
    }

    fn wait(&mut self, _: Option<Duration>) -> bool {
        std::mem::take(&mut self.0.borrow_mut().notified)
    }
}

fn requests(ram: &VecRam, size: u16) -> (Requests<&VecRam, Wire<'_>>, Wire<'_>) {
    let layout = RingLayout::contiguous(Gpa(0x1000), size).unwrap();
    let ring = DriverRing::new(ram, layout, false).unwrap();
    let host = Host {
        device: NaiveDevice::new(ram, layout, false),
        ram,
        withholds: false,
        // Nonsense, which a driver has to ignore that has negotiated no meaning for it.
        used_len: 12345,
        writes: None,
        kept: Vec::new(),
        seen: Vec::new(),
        kicks: 0,
        notified: false,
    };
    let wire = Wire(Rc::new(RefCell::new(host)));
    (Requests::new(ring, wire.clone()), wire)
}

fn blocks(count: u32) -> Vec<PfnRange> {
    (0..count).map(|block| PfnRange::block(Pfn(block << 9), 9)).collect()
}

#[test]
fn a_report_is_one_chain_of_writable_buffers() {
    for table in [None, Some(BUFFER)] {
        let ram = VecRam::new(1 << 16);
        let (requests, wire) = requests(&ram, 32);
        let mut queue = ReportingQueue::new(requests, table).unwrap();
        assert_eq!(queue.capacity(), 32);
        for _ in 0..100 {
            queue.report(&blocks(32), SHORT).unwrap();
        }
        queue.report(&[], SHORT).unwrap();
        let host = wire.0.borrow();
        assert_eq!((host.seen.len(), host.kicks), (100, 100));
        for (index, descriptor) in host.seen[99].iter().enumerate() {
            assert_eq!((descriptor.addr, descriptor.len), (Gpa((index as u64) << 21), 2 << 20));
            assert_eq!(descriptor.flags & Descriptor::WRITE, Descriptor::WRITE);
        }
        let counters = queue.counters();
        assert_eq!((counters.chains, counters.ranges, counters.pages), (100, 3200, 3200 * 512));
        assert!(counters.waited > Duration::ZERO);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_never_seen() {
    let ram = VecRam::new(1 << 16);
    let (small, _) = requests(&ram, 16);
    assert_eq!(ReportingQueue::new(small, None).err(), Some(QueueTooSmall(16)));
    let (requests, wire) = requests(&ram, 64);
    let mut queue = ReportingQueue::new(requests, None).unwrap();
    assert_eq!(queue.report(&blocks(33), SHORT), Err(ReportError::Refused));
    let four_gib = PfnRange { start: Pfn(0), end: Pfn(1 << 20) };
    assert_eq!(queue.report(&[four_gib], SHORT), Err(ReportError::Refused));
    assert_eq!(queue.counters().refused, 2);
    assert!(wire.0.borrow().seen.is_empty());
}

#[test]
fn timed_out_chain_holds_back_further_reports() {
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 64);
    let mut queue = ReportingQueue::new(requests, Some(BUFFER)).unwrap();
    wire.0.borrow_mut().withholds = true;
    assert_eq!(queue.report(&blocks(2), SHORT), Err(ReportError::Timeout));
    assert_eq!(queue.outstanding(), blocks(2));
    let mut table = [0; Descriptor::BYTES];
    ram.read(BUFFER, &mut table).unwrap();

    assert_eq!(queue.report(&blocks(1), SHORT), Err(ReportError::Refused));
    assert!(!queue.settle() && !queue.wait_settled(SHORT));
    let mut now = [0; Descriptor::BYTES];
    ram.read(BUFFER, &mut now).unwrap();
    assert_eq!(table, now, "the table is the device's");
    assert_eq!(wire.0.borrow().seen.len(), 1);

    {
        let mut host = wire.0.borrow_mut();
        // Something that was never given does not count.
        host.give_back(7);
        host.withholds = false;
    }
    assert!(!queue.wait_settled(SHORT));
    wire.0.borrow_mut().give_back_all();
    assert!(queue.settle() && queue.wait_settled(SHORT));
    assert!(queue.outstanding().is_empty());
    queue.report(&blocks(1), SHORT).unwrap();
    let counters = queue.counters();
    assert_eq!((counters.chains, counters.timeouts, counters.refused), (1, 1, 1));
}

#[test]
fn late_acknowledgement_allows_the_next_report() {
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 64);
    let mut queue = ReportingQueue::new(requests, None).unwrap();
    wire.0.borrow_mut().withholds = true;
    assert_eq!(queue.report(&blocks(2), SHORT), Err(ReportError::Timeout));
    {
        let mut host = wire.0.borrow_mut();
        host.give_back_all();
        host.withholds = false;
    }
    queue.report(&blocks(3), SHORT).unwrap();
    assert!(queue.outstanding().is_empty());
    assert_eq!(wire.0.borrow().seen.len(), 2);
}

#[test]
fn page_frame_numbers_go_out_256_at_a_time() {
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 4);
    let mut queue = PageQueue::new(requests, &ram, BUFFER, SHORT);
    let pages: Vec<Pfn> = (0..600).map(|n| Pfn(0x100_0000 + n)).collect();
    queue.tell(&pages).unwrap();
    let lengths: Vec<u32> = wire.0.borrow().seen.iter().map(|chain| chain[0].len).collect();
    assert_eq!(lengths, [1024, 1024, 352]);
    assert!(wire.0.borrow().seen.iter().all(|chain| chain.len() == 1 && chain[0].flags == 0));
    let mut last = [0; 4];
    ram.read(BUFFER, &mut last).unwrap();
    assert_eq!(u32::from_le_bytes(last), 0x100_0000 + 512);

    wire.0.borrow_mut().withholds = true;
    let error = queue.tell(&pages).unwrap_err();
    assert_eq!(error, TellError { told: 0, cause: RequestError::Timeout });
    let error = queue.tell(&pages).unwrap_err();
    assert_eq!(error, TellError { told: 0, cause: RequestError::Busy });
}

#[test]
fn statistics_are_refilled_when_the_device_asks() {
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 4);
    let mut queue = StatsQueue::new(requests, &ram, BUFFER);
    wire.0.borrow_mut().withholds = true;
    let free = |value| vec![Stat { tag: StatTag::MemFree, value }];
    queue.offer(&free(1)).unwrap();
    assert_eq!(queue.offer(&free(2)), Err(RequestError::Busy));
    assert_eq!(queue.serve(SHORT, || unreachable!("it did not ask")), Ok(false));
    for value in [3, 4] {
        wire.0.borrow_mut().give_back_all();
        assert_eq!(queue.serve(SHORT, || free(value)), Ok(true));
        let mut bytes = [0; Stat::BYTES];
        ram.read(BUFFER, &mut bytes).unwrap();
        assert_eq!(bytes, [4, 0, u8::try_from(value).unwrap(), 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(wire.0.borrow().seen.len(), 3);
    assert_eq!(wire.0.borrow().seen[2][0].len, 10);
}

#[test]
fn round_of_hints_is_a_command_blocks_and_a_stop() {
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 4);
    let mut queue = HintingQueue::new(requests, &ram, BUFFER, SHORT);
    let id = || {
        let mut bytes = [0; 4];
        ram.read(BUFFER, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    queue.command(7).unwrap();
    assert_eq!(id(), 7);
    queue.hint(PfnRange::block(Pfn(1 << 10), 10)).unwrap();
    queue.command(HINT_STOP).unwrap();
    assert_eq!(id(), HINT_STOP);
    let seen = |chain: &[Descriptor]| (chain[0].addr, chain[0].len, chain[0].flags);
    let chains: Vec<_> = wire.0.borrow().seen.iter().map(|chain| seen(chain)).collect();
    let hint = (Gpa(4 << 20), 4 << 20, Descriptor::WRITE);
    assert_eq!(chains, [(BUFFER, 4, 0), hint, (BUFFER, 4, 0)]);

    wire.0.borrow_mut().withholds = true;
    assert_eq!(queue.command(8), Err(RequestError::Timeout));
    assert_eq!(queue.command(9), Err(RequestError::Busy));
    assert_eq!(id(), 8, "the device may still read the buffer");
}

#[test]
fn report_is_zero_if_its_used_length_is_its_own() {
    for init in [false, true] {
        let ram = VecRam::new(1 << 16);
        let (requests, wire) = requests(&ram, 32);
        let queue = ReportingQueue::new(requests, None).unwrap();
        let mut queue = if init { queue.with_init() } else { queue };
        let mut is_zero = |used_len| {
            wire.0.borrow_mut().used_len = used_len;
            queue.report(&blocks(3), SHORT).unwrap();
            queue.is_zero()
        };
        assert_eq!(is_zero(6 << 20), init);
        for less in [0, 1, 4096, 4 << 20, (6 << 20) - 1, (6 << 20) + 1, u32::MAX] {
            assert!(!is_zero(less), "{less}");
        }
        assert_eq!(is_zero(6 << 20), init);
        // Of a report that is late it is not known.
        wire.0.borrow_mut().withholds = true;
        assert_eq!(queue.report(&blocks(3), SHORT), Err(ReportError::Timeout));
        assert!(!queue.is_zero());
        wire.0.borrow_mut().give_back_all();
        assert!(queue.settle() && !queue.is_zero());
    }
}

#[test]
fn inflated_pages_are_zero_by_bits_that_were_used() {
    const BITMAP: Gpa = Gpa(0x9000);
    let ram = VecRam::new(1 << 16);
    let (requests, wire) = requests(&ram, 4);
    let mut queue = PageQueue::new(requests, &ram, BUFFER, SHORT).with_bitmap(BITMAP);
    let pages: Vec<Pfn> = (0..270).map(Pfn).collect();
    ram.write(BITMAP, &[0xff; 32]).unwrap();
    let mut ask = |used_len| {
        wire.0.borrow_mut().used_len = used_len;
        let mut zero = Vec::new();
        queue.tell_and_ask(&pages, |pfn| zero.push(pfn.0)).unwrap();
        zero
    };
    // This device writes nothing, and the bits were cleared before it could.
    for used_len in [0, 2, 32, 33, u32::MAX] {
        assert_eq!(ask(used_len), [0; 0], "{used_len}");
    }
    let seen = wire.0.borrow().seen.clone();
    let [full, rest] = &seen[..2] else { panic!("two chains") };
    let shape = |chain: &[Descriptor]| -> Vec<_> {
        chain.iter().map(|d| (d.addr, d.len, d.flags & Descriptor::WRITE)).collect()
    };
    assert_eq!(shape(full), [(BUFFER, 1024, 0), (BITMAP, 32, Descriptor::WRITE)]);
    assert_eq!(shape(rest), [(BUFFER, 14 * 4, 0), (BITMAP, 2, Descriptor::WRITE)]);

    // One that sets the bits 0, 3 and 9, and says how many bytes count.
    wire.0.borrow_mut().writes = Some((BITMAP, vec![0b1001, 0b10]));
    assert_eq!(ask(0), [0; 0]);
    assert_eq!(ask(1), [0, 3, 256, 259]);
    assert_eq!(ask(2), [0, 3, 9, 256, 259, 265]);
}
