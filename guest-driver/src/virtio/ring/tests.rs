// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::{
    naive_device::{NaiveDevice, SharedRam, VecRam},
    *,
};
use std::{sync::mpsc, thread};

const RAM_BYTES: usize = 1 << 16;
const TABLE: Gpa = Gpa(0x8000);

fn layout(size: u16) -> RingLayout {
    RingLayout::contiguous(Gpa(0x1000), size).unwrap()
}

fn buffer(page: u64) -> Buffer {
    Buffer::writable(Gpa(page << 12), 4096)
}

#[test]
fn a_chain_goes_to_the_device_and_comes_back() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(8), false).unwrap();
    let mut device = NaiveDevice::new(&ram, layout(8), false);
    let buffers = [buffer(3), Buffer::readable(Gpa(0x9000), 7), buffer(1)];
    let head = ring.add_chain(&buffers).unwrap();
    assert!(device.take().is_none(), "visible before it was published");
    ring.publish().unwrap();
    assert!(ring.kick_needed().unwrap());

    let (got, chain) = device.take().unwrap();
    assert_eq!(got, head);
    let flat: Vec<_> = chain
        .iter()
        .map(|d| Buffer { addr: d.addr, len: d.len, writable: d.flags & Descriptor::WRITE != 0 })
        .collect();
    assert_eq!(flat, buffers);

    assert_eq!(ring.pop_used().unwrap(), None);
    assert_eq!(ring.free_descriptors(), 5);
    device.give_back(u32::from(head), 42);
    assert_eq!(ring.pop_used().unwrap(), Some(Used { id: head, len: 42 }));
    assert_eq!(ring.free_descriptors(), 8);
    assert_eq!(ring.pop_used().unwrap(), None);
}

#[test]
fn an_indirect_chain_takes_one_descriptor() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(2), false).unwrap();
    let mut device = NaiveDevice::new(&ram, layout(2), false);
    let buffers: Vec<_> = (0..100).map(buffer).collect();
    ring.add_indirect(TABLE, &buffers).unwrap();
    ring.publish().unwrap();
    assert_eq!(ring.free_descriptors(), 1);
    let (_, chain) = device.take().unwrap();
    let addresses: Vec<_> = chain.iter().map(|d| d.addr.0 >> 12).collect();
    assert_eq!(addresses, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_full_ring_says_so_and_stays_as_it_was() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(4), false).unwrap();
    let head = ring.add_chain(&[buffer(0); 3]).unwrap();
    assert_eq!(ring.add_chain(&[buffer(0); 2]), Err(RingError::Full { need: 2, free: 1 }));
    assert_eq!(ring.add_chain(&[]), Err(RingError::EmptyChain));
    ring.add_chain(&[buffer(0)]).unwrap();
    assert_eq!(ring.add_indirect(TABLE, &[buffer(0)]), Err(RingError::Full { need: 1, free: 0 }));
    ring.publish().unwrap();
    assert_eq!(ring.published(), 2);
    let mut device = NaiveDevice::new(&ram, layout(4), false);
    assert_eq!(device.take().unwrap().0, head);
}

#[test]
fn out_of_order_returns_keep_the_free_list_whole() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(16), true).unwrap();
    let mut device = NaiveDevice::new(&ram, layout(16), true);
    // More rounds than the running indices hold, so that they wrap.
    for round in 0..20_000_u32 {
        let lens = [1 + round % 5, 1 + round % 3, 1 + round % 8];
        let heads = lens.map(|len| {
            let buffers: Vec<_> = (0..u64::from(len)).map(buffer).collect();
            ring.add_chain(&buffers).unwrap()
        });
        ring.publish().unwrap();
        for (head, len) in heads.iter().zip(lens) {
            let (got, chain) = device.take().unwrap();
            assert_eq!((got, chain.len()), (*head, len as usize));
        }
        for turn in 0..3 {
            let head = heads[(turn + round as usize) % 3];
            device.give_back(u32::from(head), 0);
            assert_eq!(ring.pop_used().unwrap(), Some(Used { id: head, len: 0 }));
        }
        assert_eq!(ring.free_descriptors(), 16);
    }
    let mut all = ring.claim(16).unwrap();
    all.sort_unstable();
    assert_eq!(all, (0..16).collect::<Vec<u16>>());
}

#[test]
fn the_device_may_not_return_what_it_was_not_given() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(4), false).unwrap();
    let mut device = NaiveDevice::new(&ram, layout(4), false);
    let head = u32::from(ring.add_chain(&[buffer(0); 2]).unwrap());
    ring.publish().unwrap();
    for id in [head + 1, 4, u32::MAX, 1 << 16] {
        device.give_back(id, 5);
        assert_eq!(ring.pop_used(), Err(RingError::UnknownId { id, len: 5 }));
    }
    device.give_back(head, 0);
    assert!(ring.pop_used().unwrap().is_some());
    device.give_back(head, 0);
    assert_eq!(ring.pop_used(), Err(RingError::UnknownId { id: head, len: 0 }));
    assert_eq!(ring.pop_used(), Ok(None));
}

#[test]
fn kicks_follow_the_flag_without_event_idx() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(4), false).unwrap();
    assert!(!ring.kick_needed().unwrap(), "nothing was published");
    ring.add_chain(&[buffer(0)]).unwrap();
    ring.publish().unwrap();
    ram.store_u16(layout(4).used_flags(), 1, Ordering::Relaxed).unwrap();
    assert!(!ring.kick_needed().unwrap());
    ram.store_u16(layout(4).used_flags(), 0, Ordering::Relaxed).unwrap();
    ring.add_chain(&[buffer(0)]).unwrap();
    ring.publish().unwrap();
    assert!(ring.kick_needed().unwrap());
}

#[test]
fn kicks_follow_the_event_index_across_the_wrap() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(4), true).unwrap();
    let mut device = NaiveDevice::new(&ram, layout(4), true);
    for index in 0..=u16::MAX {
        // The device sleeps at every third entry.
        let asleep = index % 3 == 0;
        device.ask_for_kick_at(if asleep { index } else { index.wrapping_sub(1) });
        let head = ring.add_chain(&[buffer(0)]).unwrap();
        ring.publish().unwrap();
        assert_eq!(ring.kick_needed().unwrap(), asleep, "at index {index}");
        assert!(!ring.kick_needed().unwrap(), "asked twice at index {index}");
        device.take().unwrap();
        device.give_back(u32::from(head), 0);
        ring.pop_used().unwrap().unwrap();
    }
    // A batch that passes the event in its middle.
    device.ask_for_kick_at(ring.published().wrapping_add(1));
    for _ in 0..3 {
        ring.add_chain(&[buffer(0)]).unwrap();
    }
    ring.publish().unwrap();
    assert!(ring.kick_needed().unwrap());
}

#[test]
fn used_notifications_are_suppressed_and_requested() {
    for event_idx in [false, true] {
        let ram = VecRam::new(RAM_BYTES);
        let mut ring = DriverRing::new(&ram, layout(8), event_idx).unwrap();
        let mut device = NaiveDevice::new(&ram, layout(8), event_idx);
        let heads: Vec<_> = (0..4).map(|_| ring.add_chain(&[buffer(0)]).unwrap()).collect();
        ring.publish().unwrap();
        let mut give = |i: usize| device.give_back(u32::from(heads[i]), 0);
        assert!(give(0));
        ring.pop_used().unwrap().unwrap();
        ring.suppress_used().unwrap();
        assert!(!give(1), "event_idx {event_idx}");
        assert!(ring.request_used().unwrap(), "one is back already");
        ring.pop_used().unwrap().unwrap();
        assert!(!ring.request_used().unwrap());
        assert!(give(2), "event_idx {event_idx}");
        ring.pop_used().unwrap().unwrap();
        assert!(give(3), "event_idx {event_idx}");
    }
}

#[test]
fn hostile_chains_can_be_written_raw() {
    let ram = VecRam::new(RAM_BYTES);
    let mut ring = DriverRing::new(&ram, layout(4), false).unwrap();
    let claimed = ring.claim(2).unwrap();
    let loops = Descriptor::writable(Gpa(0), 1).chained_to(claimed[0]);
    ring.write_descriptor(claimed[1], loops).unwrap();
    assert_eq!(ring.read_descriptor(claimed[1]).unwrap(), loops);
    ring.offer(claimed[0]).unwrap();
    ring.offer(999).unwrap();
    ring.publish().unwrap();
    assert_eq!(ring.published(), 2);
    let mut device = NaiveDevice::new(&ram, layout(4), false);
    device.give_back(u32::from(claimed[0]), 0);
    assert!(ring.pop_used().unwrap().is_some());
    assert_eq!(ring.free_descriptors(), 4);
    ring.store_avail_idx(7777).unwrap();
    assert_eq!(ram.load_u16(layout(4).avail_idx(), Ordering::Relaxed), Ok(7777));
}

#[test]
fn a_ring_outside_memory_is_an_error() {
    let ram = VecRam::new(64);
    assert!(matches!(
        DriverRing::new(&ram, layout(4), false),
        Err(RingError::Ram(RamError::OutOfRange { .. }))
    ));
}

/// Both sides sleep whenever the other said it would wake them: a lost notification hangs here.
#[test]
fn no_notification_is_lost_between_two_threads() {
    const CHAINS: u32 = 20_000;
    let ram = SharedRam::new(RAM_BYTES);
    let place = layout(4);
    let mut ring = DriverRing::new(&ram, place, true).unwrap();
    let (kick, kicks) = mpsc::channel::<()>();
    let (call, calls) = mpsc::channel::<()>();
    let shared = &ram;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut device = NaiveDevice::new(shared, place, true);
            let mut done = 0;
            while done < CHAINS {
                if let Some((head, _)) = device.take() {
                    if device.give_back(u32::from(head), 0) {
                        call.send(()).unwrap();
                    }
                    done += 1;
                    continue;
                }
                device.ask_for_kick_at(device.next_avail);
                fence(Ordering::SeqCst);
                let avail = shared.load_u16(place.avail_idx(), Ordering::Acquire).unwrap();
                if avail == device.next_avail {
                    kicks.recv().unwrap();
                }
            }
        });
        let (mut sent, mut back) = (0, 0);
        while back < CHAINS {
            while sent < CHAINS && ring.free_descriptors() > 0 {
                ring.add_chain(&[buffer(1)]).unwrap();
                ring.publish().unwrap();
                sent += 1;
                if ring.kick_needed().unwrap() {
                    // The device may have seen the last chain without it, and be gone.
                    let _ = kick.send(());
                }
            }
            match ring.pop_used().unwrap() {
                Some(_) => back += 1,
                None => calls.recv().unwrap(),
            }
        }
    });
}
