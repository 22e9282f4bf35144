// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device on its way to another daemon.

mod transfer;

pub use transfer::{StateError, VERSION, decode, encode};
pub(crate) use transfer::{Transfer, Transfers};
