// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab: experiments and races over any guest, records that are kept, and a report to look at.
//!
//! | file | what |
//! |---|---|
//! | [`parameters`] | what can be set, and what is said about a value that is wrong |
//! | [`experiment`] | what an experiment is, the list of them, and a checked plan of a run |
//! | [`store`] | the record of a finished case, kept so that an interrupted run can go on |
//! | [`progress`] | bars, and Ctrl-C |
//! | [`mod@bench`] | the experiments |
//! | [`race`] | what reporting can collide with, in the model and in real Linux |
//! | [`machine`] | what a run was made on |
//! | [`report`] | records as a page |
//! | [`table`] | records for a terminal |

pub mod bench;
pub mod experiment;
pub mod faults;
pub mod machine;
pub mod parameters;
pub mod progress;
pub mod race;
pub mod report;
pub mod store;
pub mod table;

/// What runs the lab, as it is printed in commands that repeat a result: `xtask` builds the daemon
/// and the lab and hands the rest of its arguments on.
pub const PROGRAM: &str = "cargo xtask lab";
