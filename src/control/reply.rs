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

/// An answer that is given once something has happened, or at a deadline.
///
/// It is looked at again when the operators' event is signalled. The main thread never waits for it.
pub(crate) struct Later {
    happened: Box<Happened>,
    answer: Box<Answer>,
    deadline: Instant,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("deadline", &self.deadline).finish_non_exhaustive()
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
        Self { happened: Box::new(happened), answer: Box::new(answer), deadline }
    }

    /// When the answer is given in any case.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The answer, if its time has come.
    pub(crate) fn poll(self, now: Instant, state: &State) -> Reply {
        let happened = (self.happened)(state);
        if happened || now >= self.deadline {
            Reply::Ready((self.answer)(state, happened))
        } else {
            Reply::Later(self)
        }
    }
}
