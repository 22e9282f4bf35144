// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the next daemon goes on from when this one ends, is killed, or is replaced by a newer one,
//! while its VM runs on.
//!
//! Nothing of it is written at the end: a daemon that is killed has no end. It is held by who
//! started the daemon and starts the next one, systemd or the keeper, in a descriptor store, and is
//! true at every moment:
//!
//! | name in the store | what |
//! |---|---|
//! | `connection` | the frontend's connection |
//! | `record` | a memfd: the device's state, and the message that is being answered |
//! | `journal-N-in`, `journal-N-out` | a socket pair, in which the frontend's settings wait with their descriptors |
//! | `own-frontend`, `own-control` | the sockets that the daemon made and listens on |
//!
//! | file | idea |
//! |---|---|
//! | `store` | the descriptor store |
//! | `journal` | messages with descriptors, in the queue of a socket |
//! | `effect` | which of a frontend's messages still count |
//! | `record` | two copies of a text, of which one is whole at every moment |
//! | `snapshot` | the device's state as text |
//! | `in_turn` | a copy of what other threads change |
//! | `held` | all of that for one daemon |

mod effect;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod held;
mod in_turn;
mod journal;
mod record;
mod snapshot;
mod store;

pub(crate) use error::{HandOverError, VERSION};
pub(crate) use held::{Held, History};
pub(crate) use journal::Entry;
pub(crate) use snapshot::{CHECK, SavedPin, Snapshot, check};
pub(crate) use store::{Store, WENT_BACK, reach_manager, tell};
