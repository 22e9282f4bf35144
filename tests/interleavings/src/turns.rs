// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue: the worker locks it for each chain, the control thread for each message.

use std::sync::Arc;

use loom::thread;

use crate::explore;
use crate::lock::{Mutex, lock};
use crate::vring::turns::Turns;

/// A queue, and how many messages have changed it.
#[derive(Default)]
struct Queue {
    turns: Turns,
    changes: Mutex<u32>,
}

impl Queue {
    /// Takes a chain: returns how many messages came before it, and whether one waits now.
    fn take(&self, grace: impl FnMut()) -> (u32, bool) {
        self.turns.worker(grace);
        let queue = lock(&self.changes);
        (*queue, self.turns.control_waits())
    }

    fn change(&self) {
        self.turns.control(|| *lock(&self.changes) += 1);
    }
}

fn against_chains(
    worker: impl Fn(&Queue) + Copy + Send + Sync + 'static,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        let queue = Arc::new(Queue::default());
        let serving = thread::spawn({
            let queue = Arc::clone(&queue);
            move || worker(&queue)
        });
        queue.change();
        serving.join().unwrap();
    }
}

/// A worker that skips the rest of a chain because a message waits takes its next chain after the
/// message. Returns the number of interleavings.
pub fn message_goes_before_the_next_chain() -> usize {
    explore(against_chains(|queue| {
        let (before, waits) = queue.take(|| {});
        let (after, _) = queue.take(|| {});
        assert!(before <= after && (!waits || after == 1), "a chain goes before the message");
    }))
}

/// A worker that has seen a message pauses once, because another one is likely. Returns the number of
/// interleavings.
pub fn message_is_followed_by_a_pause() -> usize {
    explore(against_chains(|queue| {
        let mut pauses = 0;
        let (seen, _) = queue.take(|| pauses += 1);
        queue.take(|| pauses += 1);
        assert!(
            seen == 0 || pauses == 1,
            "no time is left for another message: {pauses} pauses after {seen}"
        );
    }))
}
