// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which targets the guests of one host get. Pure: no clock, no socket, no thread.
//!
//! [`Policy::step`] takes what was [`Seen`] of the host and of its guests, and returns a [`Decision`] for
//! each guest. The daemon's own rules hold besides: it refuses a target that leaves a guest too little.
//!
//! What every step keeps to, in this order:
//!
//! 1. **Never without a fresh sample.** A guest that is silent, or whose numbers contradict each other,
//!    gets no decision. Its lease is not renewed, so that it goes back to its base target.
//! 2. **At a sign of guest pressure all is let go at once**, and for a time that doubles with each sign
//!    nothing is taken. Later never again so much, as long as the guest uses as much as then.
//! 3. **Never below the floor**: what the guest has used at most lately, and its reserve. A guest that
//!    grows is given that at once, whatever the host lacks.
//! 4. **Taken only when the host needs it**, in the proportion of what guests can spare to their shares,
//!    a part of the guest's memory a step, and not before its balloon has followed the last one.
//! 5. **Given back only when the host can hold it.** Between the two is a band in which nothing moves, so
//!    that what was given back is not taken again.
//!
//! | file | contents |
//! |---|---|
//! | [`rules`] | the operator's rules, from TOML |
//! | [`seen`] | what a step is told |
//! | [`decision`] | what it decides, and why |
//! | `guest` | what is known of a guest from steps before: its floor, its pressure |
//! | `share` | the division of what the host lacks |
//! | [`step`] | a step |

pub mod decision;
mod guest;
pub mod rules;
pub mod seen;
mod share;
pub mod step;

pub use decision::{Action, Decision, Why};
pub use rules::{Rules, RulesError};
pub use seen::{GuestSeen, HostSeen, Sample, Seen};
pub use step::Policy;
