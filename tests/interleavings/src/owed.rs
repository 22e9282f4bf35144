// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notifications of the driver: the worker returns chains, and the frontend replaces the call
//! descriptor.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use loom::thread;

use crate::explore;
use crate::lock::{Mutex, lock};
use crate::vring::owed::Owed;

/// A call descriptor: how many chains had come back when it was signalled last.
#[derive(Default)]
struct Call {
    heard: AtomicU32,
    is_broken: bool,
}

/// A queue, which is locked for each chain and for each message.
struct Queue {
    runs: bool,
    returned: u32,
    owed: Owed<Arc<Call>>,
}

impl Queue {
    /// As `Vring::notify`.
    fn pay(&mut self) {
        let signal = |call: &Arc<Call>| {
            if call.is_broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            call.heard.store(self.returned, Ordering::Relaxed);
            Ok(())
        };
        // A failure is a line in the log.
        let _ = self.owed.pay(|| true, signal);
    }

    /// As `Vring::set_call`.
    fn replace_call(&mut self, call: &Arc<Call>) {
        self.owed.replace_call(Some(Arc::clone(call)), self.runs);
        self.pay();
    }

    /// As `Vring::set_queue_ready`.
    fn stop(&mut self) {
        self.pay();
        self.runs = false;
    }
}

/// What the frontend does before it replaces the call.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    Stop,
}

/// Up to two chains are returned while `first`, if there is one, is replaced: the last call is signalled for all.
fn call_replaced(
    first: impl Fn() -> Option<Call> + Send + Sync + 'static,
    before: Before,
) -> usize {
    explore(move || {
        let queue = Queue { runs: true, returned: 0, owed: Owed::default() };
        let queue = Arc::new(Mutex::new(queue));
        if let Some(first) = first() {
            lock(&queue).replace_call(&Arc::new(first));
        }
        let worker = thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                for _ in 0..2 {
                    let mut queue = lock(&queue);
                    if !queue.runs {
                        return;
                    }
                    queue.returned += 1;
                    queue.owed.returned();
                }
                // The ring is empty.
                let mut queue = lock(&queue);
                if queue.runs {
                    queue.pay();
                }
            }
        });
        if matches!(before, Before::Stop) {
            lock(&queue).stop();
        }
        let last = Arc::new(Call::default());
        lock(&queue).replace_call(&last);
        worker.join().unwrap();
        let queue = lock(&queue);
        assert_eq!(last.heard.load(Ordering::Relaxed), queue.returned, "a chain is not signalled");
        assert!(!queue.owed.is_owed());
    })
}

/// Nothing listens to the call before. Returns the number of interleavings.
pub fn call_that_is_replaced_is_signalled_again() -> usize {
    call_replaced(|| Some(Call::default()), Before::Nothing)
}

/// The call comes when chains were returned and the queue has stopped. Returns the number of
/// interleavings.
pub fn call_that_comes_late_is_signalled() -> usize {
    call_replaced(|| None, Before::Stop)
}

/// The call before cannot be signalled. Returns the number of interleavings.
pub fn call_that_fails_leaves_the_debt() -> usize {
    call_replaced(|| Some(Call { is_broken: true, ..Call::default() }), Before::Stop)
}
