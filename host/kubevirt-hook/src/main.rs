// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    balloon_kubevirt_hook::run()
}
