// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user protocol: one frontend connection, its messages and its virtqueues.
//!
//! | file | idea |
//! |---|---|
//! | `session` | one connection, from accept to the end of its threads |
//! | `relay` | passes messages between the frontend and the framework |
//! | `message` | one message on its way, with its descriptors |
//! | `validate` | the shape of each message: size, flags, numbers |
//! | `admission` | which messages and descriptors are let in, before the framework sees them |
//! | `areas`, `descriptor`, `file_system` | regions, kinds of descriptors, kinds of files, for admission |
//! | `error` | why a message ends the connection, or is refused |
//! | `vmm_target` | a target that the VMM sets |
//! | `frontend_channel` | requests of the daemon to the frontend |
//! | [`backend`] | the framework's calls, for the device and the memory |
//! | [`vring`] | one virtqueue: kicks, draining, notifications |
//! | [`device_state`] | the device's state on its way to or from another daemon |
//! | `wind_up` | the deadlines of a session whose frontend has hung up |

mod admission;
mod areas;
pub(crate) mod backend;
mod descriptor;
pub(crate) mod device_state;
mod error;
mod file_system;
mod frontend_channel;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod message;
mod relay;
mod session;
mod validate;
mod vmm_target;
pub(crate) mod vring;
mod wind_up;

pub(crate) use device_state::Transfers;
pub(crate) use error::Refused;
pub(crate) use session::{Session, SessionError};
pub(crate) use vring::Rings;
pub(crate) use wind_up::{Due, WindUp};
