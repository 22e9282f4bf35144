// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters.

use crate::guest::Kernel;
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Several, Whole};

parameters! {
    /// The parameters.
    pub(in crate::race) struct Settings {
        runs: u64, Whole(1, 10_000), 1, 10, "kills of each case, in one guest";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest],
            vec![Kernel::Newest, Kernel::Stable],
            "kernels to try: the newest, and that of Debian's stable release";
        memory: u64, Bytes(256 << 20, 16 << 30), 320 << 20, 320 << 20, "memory of the guest";
        victim: u64, Bytes(16 << 20, 4 << 30), 64 << 20, 64 << 20,
            "memory of the process that is killed, at most a fourth of the guest's";
        cpus: u32, Whole(1, 64), 2, 2, "CPUs of the guest";
        delay: u64, Whole(1, 10_000), 50, 50,
            "milliseconds before a report, where the kernel has that parameter";
        late: u64, Whole(1, 60_000), 5000, 5000,
            "milliseconds that a late device takes to acknowledge";
    }
}
