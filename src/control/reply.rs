// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An answer that is there, or one that waits for an event.

use std::fmt;
use std::time::Instant;

use super::http::Response;
use crate::state::State;

/// What a request comes to.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The answer.
    Ready(Response),
    /// There will be one.
    Later(Later),
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self::Ready(response)
    }
}

type Happened = dyn Fn(&State) -> bool;
type Answer = dyn FnOnce(&State, bool) -> Response;

/// Work that goes on for as long as its client waits for the answer. It is dropped when the client
/// hangs up or has been answered.
pub(crate) trait Work {
    /// Goes on as far as it can without waiting; returns the answer once there is one.
    fn advance(&mut self, now: Instant, state: &State) -> Option<Response>;

    /// When to go on at the latest: after the moment of the last call.
    fn due(&self) -> Instant;
}

/// An answer that is given once something has happened, or at a deadline; or at the end of some work.
///
/// It is looked at again when the operators' event is signalled. The main thread never waits for it.
pub(crate) struct Later(Kind);

enum Kind {
    Event { happened: Box<Happened>, answer: Box<Answer>, deadline: Instant },
    Work(Box<dyn Work>),
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}

impl Later {
    /// Waits until `happened`, at most until `deadline`. `answer` is called once, and told which it
    /// was.
    pub(crate) fn new(
        deadline: Instant,
        happened: impl Fn(&State) -> bool + 'static,
        answer: impl FnOnce(&State, bool) -> Response + 'static,
    ) -> Self {
        Self(Kind::Event { happened: Box::new(happened), answer: Box::new(answer), deadline })
    }

    /// Waits for the end of some work.
    pub(crate) fn work(work: impl Work + 'static) -> Self {
        Self(Kind::Work(Box::new(work)))
    }

    /// When the answer is given in any case, or the work goes on.
    pub(crate) fn deadline(&self) -> Instant {
        match &self.0 {
            Kind::Event { deadline, .. } => *deadline,
            Kind::Work(work) => work.due(),
        }
    }

    /// The answer, if its time has come.
    pub(crate) fn poll(self, now: Instant, state: &State) -> Reply {
        match self.0 {
            Kind::Event { happened, answer, deadline } => {
                let is_there = happened(state);
                if is_there || now >= deadline {
                    return Reply::Ready(answer(state, is_there));
                }
                Reply::Later(Self(Kind::Event { happened, answer, deadline }))
            }
            Kind::Work(mut work) => match work.advance(now, state) {
                Some(response) => Reply::Ready(response),
                None => Reply::Later(Self(Kind::Work(work))),
            },
        }
    }
}
