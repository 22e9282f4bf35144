// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device on its way to another daemon: what `VHOST_USER_SET_DEVICE_STATE_FD` and
//! `VHOST_USER_CHECK_DEVICE_STATE` carry (vhost-user protocol, "Migrating back-end state").
//!
//! The state is a line of JSON, so that an engineer can read it when a migration failed:
//!
//! ```json
//! {"format":"vhost-device-balloon","version":1,"balloon":{…}}
//! ```
//!
//! Nothing of a queue is in it: the frontend moves the vring bases itself.

//!
//! | file | idea |
//! |---|---|
//! | `format` | the state as a line of JSON |
//! | `transfer` | a transfer in a thread of its own, one at a time |
//! | `pipe` | the frontend's descriptor, read and written without blocking |
//! | `error` | why a state is not saved or loaded |

mod error;
mod format;
mod pipe;
mod transfer;

pub(crate) use error::StateError;
pub(crate) use format::{decode, encode};
pub(crate) use transfer::{Transfer, Transfers};
