// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask demo`: a guest gives its free memory back, and one can watch it.

mod linux;
mod measure;
mod model;
mod page;
mod plot;
mod screen;
mod table;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cargo;
use crate::setup;
use measure::{Device, Run};

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuestKind {
    /// A real Linux in QEMU.
    Linux,
    /// The model of Linux's page allocator, in this process. Needs no QEMU.
    Model,
}

impl GuestKind {
    /// As a sentence begins with it.
    fn name(self) -> &'static str {
        match self {
            Self::Linux => "A Linux guest",
            Self::Model => "A model of a Linux guest",
        }
    }
}

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// Whose memory it is.
    #[arg(long, value_enum, default_value_t = GuestKind::Linux)]
    guest: GuestKind,
    /// Does the same with QEMU's own balloon device afterwards, and puts both side by side.
    #[arg(long)]
    compare: bool,
    /// Memory of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(256..=65536))]
    memory: u64,
    /// How often the guest fills and frees memory.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Prints the results as JSON on standard output; everything else goes to standard error.
    #[arg(long)]
    json: bool,
}

/// Runs the demo; see [`Options`].
///
/// # Errors
/// If it cannot be run, and if the guest's memory did not come back or was not whole.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.compare && options.guest == GuestKind::Model {
        bail!("--compare is for a guest in QEMU: the model has no other device to compare with");
    }
    let toolbox = match options.guest {
        GuestKind::Linux => Some(setup::guest()?),
        GuestKind::Model => None,
    };
    eprintln!("building the daemon");
    let daemon = cargo::release_daemon()?;
    // Instead of being killed: then nothing is left behind.
    ctrlc::set_handler(|| measure::INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot watch for Ctrl-C")?;
    let devices: &[Device] =
        if options.compare { &[Device::Daemon, Device::Qemu] } else { &[Device::Daemon] };
    let runs = devices
        .iter()
        .map(|device| match &toolbox {
            Some(toolbox) => linux::run(toolbox, &daemon, *device, options),
            None => model::run(&daemon, options),
        })
        .collect::<Result<Vec<Run>>>()?;

    let table = table::render(&runs);
    let page = write_page(options, &runs)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    } else {
        println!("{table}");
        if let [ours, qemu] = runs.as_slice() {
            println!("{}", table::comparison(ours, qemu));
        }
    }
    eprintln!("picture: {}", page.display());
    for run in &runs {
        if let Some(fault) = run.fault() {
            bail!("{}: {fault}", run.device);
        }
    }
    Ok(())
}

fn write_page(options: &Options, runs: &[Run]) -> Result<PathBuf> {
    let folder = cargo::root().join("target/demo");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let raw = folder.join("result.json");
    fs::write(&raw, serde_json::to_string_pretty(runs)?)
        .with_context(|| format!("cannot write {}", raw.display()))?;
    let page = folder.join("index.html");
    fs::write(&page, page::render(options, runs)?)
        .with_context(|| format!("cannot write {}", page.display()))?;
    Ok(page)
}
