// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab: experiments over any guest, records of their results, and a report.
//!
//! | file | content |
//! |---|---|
//! | [`experiment`] | the trait of an experiment, and its erased form |
//! | [`parameters`] | the parameters of an experiment, as a struct of its own |
//! | [`plan`] | a checked plan of cases, and its run |
//! | [`store`] | the records of finished cases, from which an interrupted run resumes |
//! | [`mod@bench`] | the experiments that measure |
//! | [`race`] | the experiments on races, faults and hypotheses |
//! | [`faults`] | faults of the backend, and their effect on a guest |
//! | [`guest`] | the kinds of guest |
//! | [`machine`] | the machine of a run |
//! | [`progress`] | bars, and Ctrl-C |
//! | [`report`] | records as a page |
//! | [`table`] | records for a terminal |
//! | [`size`], [`natural`] | sizes and the order of names |

pub mod bench;
pub mod experiment;
pub mod faults;
pub mod guest;
pub mod machine;
pub mod natural;
pub mod parameters;
pub mod plan;
pub mod progress;
pub mod race;
pub mod report;
mod scheme;
pub mod size;
pub mod store;
pub mod table;

/// The command that runs the lab, as commands that repeat a result print it: `xtask` builds the daemon
/// and the lab, and passes the other arguments on.
pub const PROGRAM: &str = "cargo xtask lab";
