// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ends a request that the backend does not answer.
//!
//! The vhost crate reads until an answer is complete and takes a socket's timeout for a reason to
//! try again, so the only way out of a request is to shut its socket down.

use anyhow::{Context, Result};
use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    expired: bool,
    quit: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }
}

/// A thread that shuts a socket down when a deadline passes.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// While it lives, the deadline counts.
pub(super) struct Armed<'a>(&'a Shared);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.set(|state| state.deadline = None);
    }
}

impl Watchdog {
    pub(super) fn new(socket: UnixStream) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || watch(&theirs, &socket))
            .context("cannot start the watchdog")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Starts a deadline, over when the guard is dropped.
    pub(super) fn arm(&self, timeout: Duration) -> Armed<'_> {
        self.shared.set(|state| state.deadline = Some(Instant::now() + timeout));
        Armed(&self.shared)
    }

    /// Whether a deadline has passed: the connection is shut down since.
    pub(super) fn expired(&self) -> bool {
        self.shared.lock().expired
    }
}

fn watch(shared: &Shared, socket: &UnixStream) {
    let mut state = shared.lock();
    while !state.quit {
        let now = Instant::now();
        state = match state.deadline {
            None => shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) if deadline > now => {
                let waited = shared.changed.wait_timeout(state, deadline - now);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                state.deadline = None;
                state.expired = true;
                // It fails only where the peer has hung up, which ends the request as well.
                let _ = socket.shutdown(Shutdown::Both);
                state
            }
        };
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.set(|state| state.quit = true);
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by the thread itself.
            let _ = thread.join();
        }
    }
}
