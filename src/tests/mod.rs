// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests across rooms that reach what no operator and no frontend can reach.

mod allocations;
mod balloon_queues;
mod channel;
pub(crate) mod generated;
mod logging;
