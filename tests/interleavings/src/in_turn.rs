// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The record for the next daemon: the worker and the main thread each change the device and write it
//! down.

use std::sync::Arc;

use loom::thread;

use crate::explore;
use crate::hand_over::in_turn::InTurn;
use crate::lock::{Mutex, lock};

/// A daemon that is killed once both are through leaves what they did. Returns the number of
/// interleavings.
pub fn record_never_falls_behind_the_device() -> usize {
    explore(|| {
        let device = Arc::new(Mutex::new(0_u32));
        let record = Arc::new(InTurn::new(0));
        let change = {
            let (device, record) = (Arc::clone(&device), Arc::clone(&record));
            move |bit: u32| {
                *lock(&device) |= bit;
                record.follow(|| *lock(&device), |record, seen| *record = seen);
                // From now on a kill must not lose it.
                assert_eq!(*record.lock() & bit, bit, "the record lacks what was kept");
            }
        };
        let worker = thread::spawn({
            let change = change.clone();
            move || change(1)
        });
        change(2);
        worker.join().unwrap();
        assert_eq!(*record.lock(), 3, "an older look replaces a later one");
    })
}
