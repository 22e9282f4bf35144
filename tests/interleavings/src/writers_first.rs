// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory map: read by the worker for each chain, written by the control thread.

use std::sync::Arc;

use loom::thread;

use crate::discard::writers_first::WritersFirst;
use crate::explore;
use crate::lock::yield_now;
use crate::wake::Wakes;

/// A worker that saw a writer wait sees what it wrote when it reads next. Returns the number of
/// interleavings.
pub fn waiting_writer_goes_first() -> usize {
    explore(|| {
        let map = Arc::new(WritersFirst::<u32>::default());
        let worker = thread::spawn({
            let map = Arc::clone(&map);
            move || {
                for _ in 0..2 {
                    let before = *map.read();
                    let waits = map.writer_waits();
                    let after = *map.read();
                    assert!(before <= after && (!waits || after == 1), "a reader overtakes");
                }
            }
        });
        *map.write() = 1;
        worker.join().unwrap();
    })
}

/// A guest with endless work: the worker discards until a new memory table waits, and the table comes.
/// Returns the number of interleavings.
pub fn memory_table_ends_an_endless_discard() -> usize {
    explore(|| {
        let map = Arc::new(WritersFirst::<u32>::default());
        let serving = Arc::new(Wakes::default());
        let worker = thread::spawn({
            let (map, serving) = (Arc::clone(&map), Arc::clone(&serving));
            move || {
                let table = map.read();
                serving.signal();
                // Each round is a discarding call.
                while !map.writer_waits() {
                    yield_now();
                }
                assert_eq!(*table, 0, "the table changes under a chain");
                drop(table);
                assert_eq!(*map.read(), 1, "another chain goes first");
            }
        });
        // The control thread comes when the worker is at it.
        serving.wait();
        *map.write() = 1;
        worker.join().unwrap();
    })
}
