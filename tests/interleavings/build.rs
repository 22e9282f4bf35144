// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tells the daemon's files that they are compiled here: their unit tests need the daemon.

fn main() {
    println!("cargo::rustc-cfg=interleavings");
    println!("cargo::rerun-if-changed=build.rs");
}
