// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The models, a folder each.

pub mod oom_reaper;
pub mod placement;
pub mod reporting;
pub mod shared_page_tables;
pub mod zonelists;
