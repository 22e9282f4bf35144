// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reporter, and everything that it can collide with.

pub mod actors;
pub mod catalogue;
pub mod host;
pub mod scenario;
pub mod shadow;
