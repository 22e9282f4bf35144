// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults of the backend, and their effect on a guest.
//!
//! | file | content |
//! |---|---|
//! | [`plan`] | a fault plan: a file or flags |
//! | [`chain`] | a report, as a device sees it |
//! | [`device`] | a device that breaks its promises |
//! | `gate` | an acknowledgement that waits for the host |
//! | [`inject`] | the daemon's system calls and limits, from outside |
//! | [`model`] | the model as the guest |
//! | `queue` | a driver without a guest |
//! | [`linux`] | real Linux as the guest |
//! | [`outcome`] | the outcome, and its comparison with the documented effect |

pub mod chain;
pub mod device;
mod gate;
pub mod inject;
pub mod linux;
pub mod model;
pub mod outcome;
pub mod plan;
mod queue;
