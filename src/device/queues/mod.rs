// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's queues, a file each behind [`QueueHandler`].
//!
//! A chain goes a straight line: a handler *collects* what it names, `discard` does the [`Action`]
//! for those ranges, and the handler *finishes* the chain. A new queue is a file here and a row of
//! [`QueueRole`].

mod ambiguous;
mod claim;
pub(super) mod contents;
mod deflate;
mod hinting;
mod inflate;
mod pfns;
mod reporting;
mod statistics;

use std::sync::MutexGuard;

use super::balloon::Balloon;
use super::chain::{ChainHead, Outcome};
use super::features::QueueRole;
use crate::discard::GuestMemory;
use crate::lock::lock;
use contents::Contents;

/// What is done with the ranges that a chain names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing: the chain names no memory, or memory that keeps its contents.
    Nothing,
    /// The ranges are discarded.
    Discard,
    /// The ranges are discarded until they are released. A part of a page of the host is held until
    /// the rest of that page has come.
    Hold,
    /// The ranges may be in use again.
    Release,
    /// Every page that is held may be in use again: which the chain names cannot be told.
    ReleaseAll,
}

/// What one chain asks for.
pub(crate) struct Request<'a> {
    /// What is done with the ranges.
    pub action: Action,
    /// What the chain says.
    pub contents: MutexGuard<'a, Contents>,
    role: QueueRole,
}

/// The meaning of a queue's chains.
pub(super) trait QueueHandler: Sync {
    /// Adds to `contents`, which are empty, the ranges that the chain names, not checked against
    /// guest memory, counts them, and says what is done with them.
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        contents: &mut Contents,
    ) -> Action;

    /// Forgets what an earlier driver sent: the queue begins with a used index of 0. `untouched` says
    /// that its ring shows no trace of use.
    fn begins(&self, _balloon: &Balloon, _untouched: bool) {}

    /// Ends the chain, once the action is done, and says whether it is returned.
    fn finish(&self, _balloon: &Balloon, _memory: &GuestMemory, _contents: &Contents) -> Outcome {
        Outcome::Return
    }
}

impl QueueRole {
    /// The handler of the queues with this role.
    pub(super) fn handler(self) -> &'static dyn QueueHandler {
        match self {
            Self::Inflate => &inflate::Inflate,
            Self::Deflate => &deflate::Deflate,
            Self::Statistics => &statistics::StatisticsQueue,
            Self::Hinting => &hinting::HintingQueue,
            Self::Reporting => &reporting::Reporting,
            Self::Ambiguous => &ambiguous::Ambiguous,
        }
    }
}

impl Balloon {
    /// Reads one chain, and locks its contents until the request is finished.
    pub(crate) fn collect(
        &self,
        role: QueueRole,
        head: ChainHead,
        memory: &GuestMemory,
    ) -> Request<'_> {
        let mut contents = lock(&self.contents);
        contents.clear();
        let action = role.handler().collect(self, head, memory, &mut contents);
        Request { action, role, contents }
    }

    /// Ends a chain whose [`Action`] is done, and says whether it is returned to the driver, whatever
    /// was in it.
    pub(crate) fn finish(&self, request: Request<'_>, memory: &GuestMemory) -> Outcome {
        request.role.handler().finish(self, memory, &request.contents)
    }

    /// The queue with this index begins with a used index of 0: most likely nothing was ever
    /// returned on it, and what is known of it came from another driver, that of a guest before this
    /// one or before a reboot. Or an index has come round, in a daemon that took another one's
    /// place: `untouched` says that the ring shows no trace of use.
    ///
    /// Nothing is concluded for the poison value: pages would be lost if that were wrong.
    pub(crate) fn queue_is_fresh(&self, index: usize, untouched: bool) {
        if let Some(role) = self.role(index) {
            role.handler().begins(self, untouched);
        }
    }
}
