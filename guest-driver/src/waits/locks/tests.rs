// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::*;

/// Waits until so many wait for `lock`.
fn until_queued(lock: &Rwsem, count: usize) {
    while lock.state.lock().queue.len() < count {
        thread::yield_now();
    }
}

#[test]
fn waiting_writer_holds_new_readers_up() {
    let (lock, party) = (Rwsem::new(), Party::UNWATCHED);
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        let shared = lock.read(party);
        scope.spawn(|| {
            let _held = lock.write(party);
            written.store(1, Ordering::SeqCst);
        });
        until_queued(&lock, 1);
        assert!(lock.try_read(party).is_none());
        let reader = scope.spawn(|| {
            let _shared = lock.read(party);
            written.load(Ordering::SeqCst)
        });
        until_queued(&lock, 2);
        drop(shared);
        assert_eq!(reader.join().expect("it reads"), 1);
    });
}

#[test]
fn readers_behind_each_other_share_the_lock() {
    let (lock, party) = (Rwsem::new(), Party::UNWATCHED);
    let inside = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        let held = lock.write(party);
        for _ in 0..2 {
            scope.spawn(|| {
                let _shared = lock.read(party);
                // Neither gets past it alone.
                inside.wait();
            });
        }
        until_queued(&lock, 2);
        drop(held);
    });
}

#[test]
fn mutex_counts_every_turn_of_many_threads() {
    let (lock, party) = (WatchedMutex::new(), Party::UNWATCHED);
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let _held = lock.lock(party);
                    let before = count.load(Ordering::Relaxed);
                    count.store(before + 1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 2_000);
}

#[test]
fn two_mutexes_in_opposite_order_are_named() {
    let waits = Arc::new(Waits::new());
    let [a, b] = ["the first lock", "the second lock"].map(|it| WatchedMutex::watched(&waits, it));
    let [one, other] = ["one task", "another task"].map(|name| waits.party(name));
    thread::scope(|scope| {
        let held = b.lock(other);
        scope.spawn(|| {
            let _held = a.lock(one);
            let _held = b.lock(one);
        });
        until_queued(&b.0, 1);
        let panic = catch_unwind(AssertUnwindSafe(|| drop(a.lock(other)))).expect_err("a deadlock");
        let said = "deadlock: another task waits for the first lock, which one task holds, who waits for the \
                    second lock, which another task holds";
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(said));
        // The other one gets what the first holds, now that it has given up.
        drop(held);
    });
}

#[test]
fn second_read_behind_a_writer_is_a_deadlock() {
    let waits = Arc::new(Waits::new());
    let lock = Rwsem::watched(&waits, "the lock");
    let [reader, writer] = ["the reader", "the writer"].map(|name| waits.party(name));
    thread::scope(|scope| {
        let shared = lock.read(reader);
        drop(lock.read(reader));
        scope.spawn(|| drop(lock.write(writer)));
        until_queued(&lock, 1);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(lock.read(reader)))).is_err());
        waits.waited(reader);
        drop(shared);
    });
}

#[test]
fn trylock_fails_while_held_and_leaves_no_trace() {
    let waits = Arc::new(Waits::new());
    let lock = Rwsem::watched(&waits, "the lock");
    let [one, other] = ["one", "other"].map(|name| waits.party(name));
    let shared = lock.read(one);
    assert!(lock.try_write(other).is_none());
    drop(lock.try_read(other).expect("it is shared"));
    drop(shared);
    let held = lock.try_write(other).expect("it is free");
    assert!(lock.try_read(one).is_none() && lock.try_write(one).is_none());
    drop(held);
    drop(lock.write(one));
}

#[test]
fn stealing_reader_passes_a_sleeping_writer() {
    let (lock, party) = (Rwsem::stealing(), Party::UNWATCHED);
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        let shared = lock.read(party);
        scope.spawn(|| {
            let _held = lock.write(party);
            written.store(1, Ordering::SeqCst);
        });
        until_queued(&lock, 1);
        for _ in 0..MOST_STOLEN {
            drop(lock.read(party));
        }
        assert_eq!(written.load(Ordering::SeqCst), 0);
        // The writer is the next now, so this one sleeps behind it.
        let last = scope.spawn(|| {
            let _shared = lock.read(party);
            assert_eq!(written.load(Ordering::SeqCst), 1);
        });
        until_queued(&lock, 2);
        drop(shared);
        last.join().expect("it came after the writer");
    });
    assert_eq!((lock.slept(), lock.state.lock().stolen), (2, 0));
}
