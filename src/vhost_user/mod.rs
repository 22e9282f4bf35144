// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vhost-user protocol: one frontend connection, its messages and its virtqueues.

mod admission;
mod areas;
pub mod backend;
mod descriptor;
pub mod device_state;
mod error;
mod file_system;
mod frontend_channel;
mod message;
mod relay;
mod session;
mod validate;
pub mod vring;
mod wind_up;

pub use device_state::StateError;
pub(crate) use device_state::Transfers;
pub use session::{Session, SessionError};
pub use vring::{Rings, Vring};
pub(crate) use wind_up::{Due, WindUp};
