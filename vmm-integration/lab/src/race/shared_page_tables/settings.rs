// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters, and what is reported.

use crate::guest::Kernel;
use crate::parameters::parameters;
use crate::parameters::takes::{Real, Several, Whole};

parameters! {
    /// The parameters.
    pub(in crate::race) struct Settings {
        runs: u32, Whole(1, 10_000), 1, 10, "how often each load runs, shared and apart in turns";
        seconds: f64, Real(0.1, 600.0), 1.0, 2.0, "time of a load, by the guest's clock";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest],
            vec![Kernel::Newest, Kernel::Stable],
            "kernels to try: the newest, and that of Debian's stable release";
        cpus: u32, Whole(1, 64), 2, 2, "CPUs of the guest";
        pages: u32, Whole(16, 508), 64, 64, "huge pages of the file that are used";
        processes: u32, Whole(1, 16), 2, 2, "processes of each kind where a load measures rates";
        delay: u64, Whole(1, 10_000), 50, 50,
            "milliseconds before a report, where the kernel has that parameter";
    }
}

/// Whether the guest reports free memory, and whether a punched page becomes free memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub(super) enum Reports {
    /// It does not report. All huge pages are surplus: a punch frees them.
    #[strum(serialize = "unreported")]
    None,
    /// It reports to the daemon. All huge pages are surplus.
    #[strum(serialize = "reported")]
    Surplus,
    /// It reports to the daemon. All huge pages stay in the pool.
    #[strum(serialize = "reported-pool")]
    Pool,
}
