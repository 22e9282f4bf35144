// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads: real ones, or shuttle's.

#[cfg(feature = "shuttle")]
use shuttle::thread as imp;
#[cfg(not(feature = "shuttle"))]
use std::thread as imp;

/// A thread that will have a result.
pub(crate) struct Handle<T>(imp::JoinHandle<T>);

/// Runs `body` beside the caller.
pub(crate) fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Handle<T> {
    Handle(imp::spawn(body))
}

impl<T> Handle<T> {
    /// Waits for the thread; its panic becomes the caller's.
    pub(crate) fn join(self) -> T {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
