// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters.

use guest_agent::placement::PlacementReport;

use crate::experiment::Context;
use crate::guest::Kernel;
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Several, Whole};

parameters! {
    /// The parameters.
    pub(in crate::race) struct Settings {
        cycles: u64, Whole(0, 100_000_000), 0, 0,
            "changes, cycles or uses after which a case ends; 0: as many as there is time for";
        seconds: u64, Whole(1, 86_400), 15, 600, "time of a case, by the guest's clock";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest],
            vec![Kernel::Newest, Kernel::Stable],
            "kernels to try: the newest, and that of Debian's stable release";
        cpus: u32, Whole(1, 64), 2, 2, "CPUs of the guest";
        bytes: u64, Bytes(4096, 16 << 20), 256 << 10, 256 << 10,
            "memory of each task under a changing cpuset";
        delay: u64, Whole(1, 10_000), 50, 50,
            "milliseconds before a report, where the kernel has that parameter";
        late: u64, Whole(1, 60_000), 2000, 2000,
            "milliseconds that a late device takes to acknowledge";
        stall: u64, Whole(1, 86_400), 10, 30,
            "seconds without a page after which a task has made no progress";
    }
}

impl Settings {
    /// Shows how far a case is; whether there is time left.
    pub(super) fn goes_on(
        &self,
        report: &PlacementReport,
        cycles: u64,
        context: &Context<'_>,
    ) -> bool {
        let time = self.seconds * 1000;
        if self.cycles > 0 {
            context.progress.at(cycles.min(self.cycles), self.cycles);
        } else {
            context.progress.at(report.elapsed_ms.min(time), time);
        }
        report.elapsed_ms < time
    }
}
