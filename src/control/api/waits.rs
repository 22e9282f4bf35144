// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers that wait: for a look at the guest's memory, or for a discarding call in progress.

use std::time::{Duration, Instant};

use crate::control::http::Response;
use crate::control::reply::{Later, Reply};
use crate::discard::{MOST_LOOK, Ticket};
use crate::state::State;

/// How long a request waits for a discarding call under way. Less than `ctl` waits for an answer.
const MOST_WAIT: Duration = Duration::from_secs(3);

/// An answer with how much of the guest's memory is there, which another thread finds out.
pub(super) fn with_resident_bytes(
    state: &State,
    answer: impl FnOnce(&State, Option<u64>) -> Response + 'static,
) -> Reply {
    let now = Instant::now();
    let Some(look) = state.backings().and_then(|_| state.survey.ask(now)) else {
        return Reply::Ready(answer(state, None));
    };
    Reply::Later(Later::new(
        now + MOST_LOOK,
        move |state| state.survey.is_taken(look),
        |state, seen| answer(state, state.survey.resident_bytes().filter(|_| seen)),
    ))
}

/// An answer that holds once the discarding calls are over that `ticket` stands for. If they take
/// too long it says so, and that `done` is done.
pub(super) fn once_over(
    state: &State,
    ticket: Ticket,
    done: &'static str,
    answer: impl FnOnce(&State) -> Response + 'static,
) -> Reply {
    if state.inhibit.is_over(ticket) {
        return Reply::Ready(answer(state));
    }
    Reply::Later(Later::new(
        Instant::now() + MOST_WAIT,
        move |state| state.inhibit.is_over(ticket),
        move |state, over| match over {
            true => answer(state),
            false => Response::error(
                504,
                format!(
                    "{done}, but a discarding system call that began before has not ended within \
                     {MOST_WAIT:?}: the memory file is busy, as while the VMM allocates it. The \
                     memory of that one call may still be discarded, and no other. To wait for \
                     its end, send the same request again"
                ),
            ),
        },
    ))
}
