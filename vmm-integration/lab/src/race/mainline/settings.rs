// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters.

use vmm_integration::windows::window::Window;

use crate::guest::Kernel;
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};

parameters! {
    /// The parameters.
    pub(in crate::race) struct Settings {
        runs: u32, Whole(1, 10_000), 1, 20, "runs of each window, in one guest";
        kernels: Vec<Kernel>, Several::any(), vec![Kernel::Newest],
            vec![Kernel::Newest, Kernel::Stable],
            "kernels to try: the newest, and that of Debian's stable release";
        windows: Vec<Window>, Several::any(), Window::ALL.to_vec(), Window::ALL.to_vec(),
            "windows to make";
        delay: u64, Whole(1, 10_000), 200, 200,
            "milliseconds before a pass, where the kernel has that parameter";
        quiet: u64, Whole(1, 600_000), 3000, 3000,
            "milliseconds in which the guest must stay quiet, longer than the delay";
    }
}
