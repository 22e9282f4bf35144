// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The options of `cargo xtask demo`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GuestKind {
    /// Linux in QEMU.
    Linux,
    /// The model of Linux's page allocator, in this process. Needs no QEMU.
    Model,
}

impl GuestKind {
    /// The guest, as the subject of a sentence.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Linux => "A Linux guest",
            Self::Model => "A model of a Linux guest",
        }
    }
}

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// The kind of guest.
    #[arg(long, value_enum, default_value_t = GuestKind::Linux)]
    pub(super) guest: GuestKind,
    /// Repeats the run with QEMU's own balloon device and compares both.
    #[arg(long)]
    pub(super) compare: bool,
    /// Repeats the run without a balloon device and draws both into this SVG file.
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Memory of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(256..=65536))]
    pub(super) memory: u64,
    /// Number of times that the guest fills and frees memory.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// Prints the results as JSON on standard output; everything else goes to standard error.
    #[arg(long)]
    pub(super) json: bool,
}
