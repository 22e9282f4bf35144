// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole session: the relay, the framework's request handler and worker, and our backend, driven by the
//! messages of a frontend and the chains of a driver, over memory that is shared and in which holes are
//! punched.
//!
//! | file | idea |
//! |---|---|
//! | `memory` | files, regions, and which page of a file lies where |
//! | `ring` | a ring as a driver writes it |
//! | `frontend` | messages and answers |
//! | `step` | what can happen |
//! | `session` | the steps, as a VMM does them |
//! | `messages` | those of them that need more than a message |
//! | `oracle` | what may have come of them |
//!
//! The frontend waits for each answer and the driver for the worker, so that it is known what was in force
//! when a chain was served. What is discarded is exactly what the chains name that were served, as far as
//! features, poison, pauses, pins, rings and the memory table of the moment let it. No other page loses its
//! mark. On a queue that was woken and runs no chain is left, and its driver is notified.

mod frontend;
mod memory;
mod messages;
mod oracle;
mod ring;
mod session;
mod step;

use session::Session;

pub(crate) use step::Input;

pub(crate) fn run(input: Input) {
    let mut session = Session::new(input.offers);
    // A session that the daemon has ended is over.
    let _ended = session
        .begin(&input)
        .and_then(|()| input.steps.iter().take(32).try_for_each(|step| session.step(step)));
    session.finish();
}
