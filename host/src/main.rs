// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-device-balloon-host`: see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_device_balloon_host::program::main()
}
