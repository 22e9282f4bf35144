// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much of the guest's memory is there, asked by a thread that may wait.
//!
//! `fstat` of a file of the frontend's choice may hang for as long as a file system likes. The main
//! thread asks and goes on; a thread of its own looks, and signals the operators when it has seen.
//! It sleeps while nothing is asked.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::discard::RegionTable;
use crate::lock::lock;
use crate::wake::Wakes;

/// How long a look may take before its answer is "unknown".
pub(crate) const MOST_WAIT: Duration = Duration::from_secs(1);

/// One look at the memory files, asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look(u64);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Survey(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    asked: Condvar,
    operators: Arc<Wakes>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Weak, so that no file of a guest is open for longer than its frontend is connected.
    regions: Weak<RegionTable>,
    /// The last look that was asked for, and the last that was taken.
    wanted: u64,
    taken: u64,
    /// When the look under way began.
    since: Option<Instant>,
    /// What the last look saw; none if the kernel would not say.
    resident_bytes: Option<u64>,
    /// Whether the thread is there.
    runs: bool,
    over: bool,
}

impl Survey {
    /// Looks at nothing yet. `operators` is signalled after each look.
    pub(crate) fn new(operators: Arc<Wakes>) -> Self {
        Self(Arc::new(Shared { operators, ..Shared::default() }))
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be none; then all that is looked for is unknown.
    pub(crate) fn start(&self) -> io::Result<()> {
        self.start_with(|table| table.resident_bytes().ok())
    }

    fn start_with(
        &self,
        look: impl Fn(&RegionTable) -> Option<u64> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        thread::Builder::new().name("survey".to_owned()).spawn(move || shared.run(look))?;
        self.0.lock().runs = true;
        Ok(())
    }

    /// Looks at the files of this table from now on.
    pub(crate) fn set_regions(&self, regions: Weak<RegionTable>) {
        self.0.lock().regions = regions;
    }

    /// Asks for a look that begins after this; `None` if there is no use in waiting for it.
    pub(crate) fn ask(&self, now: Instant) -> Option<Look> {
        let mut inner = self.0.lock();
        let stuck = inner.since.is_some_and(|since| now.duration_since(since) >= MOST_WAIT);
        if !inner.runs || stuck {
            return None;
        }
        inner.wanted += 1;
        self.0.asked.notify_one();
        Some(Look(inner.wanted))
    }

    /// Whether the look was taken.
    pub(crate) fn is_taken(&self, Look(look): Look) -> bool {
        self.0.lock().taken >= look
    }

    /// Bytes of the files behind the guest's memory that are there, as the last look saw; `None` if
    /// the kernel would not say.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        self.0.lock().resident_bytes
    }
}

impl Drop for Survey {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.asked.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn run(&self, look_at: impl Fn(&RegionTable) -> Option<u64>) {
        let mut inner = self.lock();
        while !inner.over {
            if inner.wanted == inner.taken {
                inner = self.asked.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let look = inner.wanted;
            inner.since = Some(Instant::now());
            let table = inner.regions.upgrade();
            drop(inner);
            let seen = table.as_deref().and_then(&look_at);
            // This may be its last owner by now, and closing a file may take long, too.
            drop(table);
            inner = self.lock();
            (inner.since, inner.taken, inner.resident_bytes) = (None, look, seen);
            self.operators.signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discard::GuestMemory;
    use crate::wake::Wake;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::mpsc::channel;

    #[test]
    fn stuck_look_is_not_waited_for() {
        let (operators, wake) = (Arc::<Wakes>::default(), Arc::new(Wake::new().unwrap()));
        operators.add(Arc::clone(&wake));
        let survey = Survey::new(operators);
        assert!(survey.ask(Instant::now()).is_none(), "without a thread");
        let (began, begun) = channel();
        let (see, seen) = channel();
        survey
            .start_with(move |_| {
                began.send(()).unwrap();
                seen.recv().unwrap()
            })
            .unwrap();
        let table = Arc::new(
            RegionTable::new(&GuestMemory::new(), crate::discard::MemoryOptions::default())
                .unwrap(),
        );
        survey.set_regions(Arc::downgrade(&table));

        let look = survey.ask(Instant::now()).unwrap();
        begun.recv().unwrap();
        assert!(!survey.is_taken(look));
        // A look that has begun is not what this one asks for.
        let next = survey.ask(Instant::now()).unwrap();
        assert!(survey.ask(Instant::now() + MOST_WAIT).is_none(), "it is stuck by now");
        see.send(Some(7)).unwrap();
        begun.recv().unwrap();
        assert!(survey.is_taken(look) && !survey.is_taken(next));
        assert_eq!(survey.resident_bytes(), Some(7));
        wake.clear();
        see.send(None).unwrap();
        poll(&mut [PollFd::new(&*wake, PollFlags::IN)], None).unwrap();
        assert!(survey.is_taken(next));
        assert_eq!(survey.resident_bytes(), None);
        // The frontend and its files may go at any time.
        drop(table);
        wake.clear();
        let last = survey.ask(Instant::now()).unwrap();
        poll(&mut [PollFd::new(&*wake, PollFlags::IN)], None).unwrap();
        assert!(survey.is_taken(last));
    }
}
