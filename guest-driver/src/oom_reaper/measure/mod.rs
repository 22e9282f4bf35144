// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each scheme reaps of processes that devices mirror in part, in virtual time.
//!
//! Every number follows from the seed. [`Load::expected`] has the closed forms of the same.
//!
//! ```
//! use guest_driver::oom_reaper::{Scheme, measure::Load};
//!
//! let load = Load { coverage: 0.5, duty: 0.0, ..Load::default() };
//! // No lock is ever held: all that is of interest can be had by a try.
//! assert_eq!(load.measure(Scheme::TryLock, 1).share(), 1.0);
//! ```

mod closed;
mod load;
mod timed;

pub use load::{Load, Measured};

#[cfg(test)]
mod tests;
