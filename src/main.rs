// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-device-balloon`: see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_balloon::program::main()
}
