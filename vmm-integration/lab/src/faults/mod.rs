// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults of the backend's side, and what becomes of a guest that meets them.
//!
//! | file | what |
//! |---|---|
//! | [`plan`] | what goes wrong, and when: a file or flags |
//! | [`device`] | a device that breaks its promises |
//! | [`inject`] | the daemon's system calls and limits, from outside |
//! | [`model`] | the model as the guest |
//! | `queue` | a driver without a guest |
//! | [`linux`] | real Linux as the guest |
//! | [`outcome`] | what came of it |

pub mod device;
pub mod inject;
pub mod linux;
pub mod model;
pub mod outcome;
pub mod plan;
mod queue;
