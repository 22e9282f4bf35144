// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Subscriptions to invalidations, and the start and end of one (`mmu_notifier_range`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::ops::Range;
use core::sync::atomic::AtomicU64 as Counter;

use super::intervals::IntervalTree;
use super::pages::{PageId, Pages};
use crate::sync::{Lock, Ordering};
use crate::waits::Party;

/// How far a notifier may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It may wait (`mmu_notifier_range_blockable`).
    Block,
    /// It must not wait, and fails for every range of its interest.
    Bail,
    /// It tries its lock, and fails if that is held.
    Try,
    /// It tries its lock. If that is held, it marks the range, and the pages are freed when those that
    /// use the device have left it.
    Defer,
}

/// Which notifiers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// All of them, and none looks at the range.
    All,
    /// All of them, and each looks whether the range is of interest to it.
    DriverTests,
    /// Those whose interest an interval tree finds.
    Tree,
}

/// A mistake in the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyFlaw {
    /// A start that fails forgets the end of the notifiers that were started before.
    ForgetsEndOnFailure,
    /// A start that fails ends all notifiers that were asked, the one that failed among them.
    EndsFailedStart,
    /// The last notifier is asked after the pages are freed.
    FreesBeforeLastNotifier,
}

/// One invalidation, as a notifier sees it.
#[derive(Debug)]
pub struct Invalidation<'a> {
    /// The task that invalidates.
    pub party: Party,
    /// Virtual page numbers.
    pub range: Range<u64>,
    /// How far the notifier may go.
    pub step: Step,
    /// The notifier is to look whether the range is of interest to it.
    pub tests_range: bool,
    /// What frees the pages if the notifier defers.
    pub grace: &'a Arc<Grace>,
}

/// A notifier's answer: it cannot do it without waiting (`-EAGAIN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the notifier would have to wait")]
pub struct Again;

/// The callbacks of a secondary MMU (`mmu_notifier_ops`).
pub trait Notifier: Debug + Send + Sync {
    /// Drops what the secondary MMU maps of the range, and keeps it from mapping more until the end.
    ///
    /// # Errors
    /// [`Again`], if that must wait and may not. The start has then changed nothing.
    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again>;

    /// The pages have left the address space.
    fn end(&self, invalidation: &Invalidation<'_>);
}

/// A subscription of a notifier.
#[derive(Clone, Debug)]
pub struct Subscribed {
    notifier: Arc<dyn Notifier>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    starts: Counter,
    ends: Counter,
}

impl Subscribed {
    /// Starts that succeeded, and ends.
    pub fn counts(&self) -> (u64, u64) {
        let [starts, ends] = [&self.counts.starts, &self.counts.ends];
        (starts.load(Ordering::Relaxed), ends.load(Ordering::Relaxed))
    }

    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        self.notifier.start(invalidation)?;
        self.counts.starts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self, invalidation: &Invalidation<'_>) {
        self.counts.ends.fetch_add(1, Ordering::Relaxed);
        self.notifier.end(invalidation);
    }
}

/// The notifiers of an address space.
#[derive(Debug, Default)]
pub struct Notifiers {
    all: Vec<Subscribed>,
    interests: IntervalTree<usize>,
}

impl Notifiers {
    /// Subscribes `notifier` to these ranges. Returns the number of the subscription.
    pub fn subscribe(&mut self, notifier: Arc<dyn Notifier>, interests: &[Range<u64>]) -> usize {
        let number = self.all.len();
        for range in interests {
            self.interests.insert(range.clone(), number);
        }
        self.all.push(Subscribed { notifier, counts: Arc::default() });
        number
    }

    /// Every subscription, by number.
    pub fn all(&self) -> &[Subscribed] {
        &self.all
    }

    /// Those that are asked about `range`, in the order of their numbers.
    fn asked(&self, range: &Range<u64>, asks: Asks) -> Vec<&Subscribed> {
        if asks != Asks::Tree {
            return self.all.iter().collect();
        }
        let mut numbers: Vec<usize> =
            self.interests.overlapping(range).into_iter().copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| &self.all[number]).collect()
    }

    /// Starts an invalidation at every notifier that is asked. If one fails, those before it get their end
    /// (Linux since 5.12).
    ///
    /// # Errors
    /// [`Again`], if a notifier fails.
    pub fn start(
        &self,
        invalidation: &Invalidation<'_>,
        asks: Asks,
        flaw: Option<NotifyFlaw>,
    ) -> Result<Started<'_>, Again> {
        let mut asked = self.asked(&invalidation.range, asks);
        let late = match flaw {
            Some(NotifyFlaw::FreesBeforeLastNotifier) => asked.pop(),
            _ => None,
        };
        for (at, subscribed) in asked.iter().enumerate() {
            if let Err(again) = subscribed.start(invalidation) {
                let to_end = match flaw {
                    Some(NotifyFlaw::ForgetsEndOnFailure) => 0,
                    Some(NotifyFlaw::EndsFailedStart) => at + 1,
                    _ => at,
                };
                asked[..to_end].iter().for_each(|started| started.end(invalidation));
                return Err(again);
            }
        }
        Ok(Started { asked, late })
    }
}

/// An invalidation that has been started, until its [`Started::end`].
#[derive(Debug)]
#[must_use = "each start has an end"]
pub struct Started<'a> {
    asked: Vec<&'a Subscribed>,
    late: Option<&'a Subscribed>,
}

impl Started<'_> {
    /// Ends it at every notifier at which it was started.
    pub fn end(mut self, invalidation: &Invalidation<'_>) {
        if let Some(late) = self.late.take()
            && late.start(invalidation).is_ok()
        {
            self.asked.push(late);
        }
        self.asked.iter().for_each(|subscribed| subscribed.end(invalidation));
    }
}

/// Pages that have left the address space and that are freed when the last notifier which deferred has
/// dropped them.
#[derive(Debug)]
pub struct Grace {
    pages: Arc<Pages>,
    state: Lock<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Notifiers that defer, and the one that invalidates.
    left: u32,
    kept: Vec<PageId>,
}

impl Grace {
    /// A grace period that the one that invalidates has not passed yet.
    pub fn new(pages: &Arc<Pages>) -> Arc<Self> {
        let state = Lock::new(Waiting { left: 1, kept: Vec::new() });
        Arc::new(Self { pages: Arc::clone(pages), state })
    }

    /// Another notifier defers.
    pub fn defer(&self) {
        self.state.lock().left += 1;
    }

    /// The page has left the address space: its reference is dropped when all have passed.
    pub fn keep(&self, page: PageId) {
        self.state.lock().kept.push(page);
    }

    /// A notifier has dropped the range, or the one that invalidates has unmapped it. The last one drops
    /// the references. Returns the number of pages that it freed.
    pub fn pass(&self) -> u64 {
        let mut state = self.state.lock();
        state.left -= 1;
        if state.left > 0 {
            return 0;
        }
        let kept = core::mem::take(&mut state.kept);
        drop(state);
        kept.into_iter().map(|page| u64::from(self.pages.put(page))).sum()
    }
}
