// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Races, faults and hypotheses of free page reporting, in real Linux and in the model.
//!
//! | file | content |
//! |---|---|
//! | [`linux`] | memory blocks that go offline and online in a real guest that reports |
//! | `offlining` | that race as an experiment |
//! | `faults` | the faults of the backend as experiments |
//! | `failing_calls` | system calls of the daemon that fail, each once |
//! | `kernel` | that race with a kernel that reports by isolation |
//! | `hand_over` | daemons that end under a real guest, and others that go on |
//! | `hypotheses` | reported bugs and hypotheses, each with a verdict |
//! | `late_acks` | operations on memory whose report is not acknowledged yet |
//! | `mainline` | windows in Linux's own reporting, which a module makes |
//! | `agreement` | the behavior that the model and Linux share |
//! | `placement` | tasks whose cpuset, policy or zonelist changes under their allocations |
//! | `oom_reaper` | processes that are killed and do not exit, with what uses their memory |
//! | `reporter` | the device that free memory is reported to |
//! | `shared_page_tables` | a file of hugetlbfs that processes of a real guest fault in |
//! | `zoneinfo` | sizes and watermarks of zones |

mod agreement;
mod failing_calls;
mod faults;
mod hand_over;
mod hypotheses;
mod kernel;
mod late_acks;
pub mod linux;
mod mainline;
mod offlining;
mod oom_reaper;
mod placement;
mod reporter;
mod shared_page_tables;
mod zoneinfo;

pub use self::faults::Planned;
use crate::experiment::AnyExperiment;

/// All races, in the order in which a run of all runs them.
pub fn experiments() -> &'static [&'static dyn AnyExperiment] {
    &[
        &offlining::Offlining,
        &faults::FaultsModel,
        &faults::FaultsLinux,
        &failing_calls::FailingCalls,
        &hypotheses::Hypotheses,
        &hand_over::HandOver,
        &kernel::KernelRace,
        &late_acks::LateAcks,
        &mainline::Mainline,
        &agreement::Agreement,
        &placement::Placement,
        &shared_page_tables::SharedPageTables,
        &oom_reaper::OomReaper,
    ]
}
