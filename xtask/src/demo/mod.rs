// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask demo`: shows live how the host reclaims the free memory of a guest.

mod linux;
mod measure;
mod model;
mod options;
mod page;
mod run;
mod screen;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::setup;
use options::GuestKind;
pub(crate) use options::Options;
use run::{Device, Run};

/// Runs the demo; see [`Options`].
///
/// # Errors
/// If a run fails, the host does not reclaim the freed memory, or memory in use was lost.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.guest == GuestKind::Model && (options.compare || options.svg.is_some()) {
        bail!("--compare and --svg need a guest in QEMU (got --guest model)");
    }
    let toolbox = match options.guest {
        GuestKind::Linux => Some(setup::guest()?),
        GuestKind::Model => None,
    };
    eprintln!("building the daemon");
    let daemon = cargo::release_daemon()?;
    // The handler keeps Ctrl-C from killing this process, so that destructors clean up.
    ctrlc::set_handler(|| measure::INTERRUPTED.store(true, Ordering::Relaxed))
        .context("cannot watch for Ctrl-C")?;
    let devices = [
        (Device::Daemon, true),
        (Device::Qemu, options.compare),
        (Device::None, options.svg.is_some()),
    ];
    let runs = devices
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(device, _)| match &toolbox {
            Some(toolbox) => linux::run(toolbox, &daemon, device, options),
            None => model::run(&daemon, options),
        })
        .collect::<Result<Vec<Run>>>()?;

    let page = write_page(options, &runs)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    } else {
        println!("{}", table::render(&runs));
        if let Some(text) = table::comparison(&runs) {
            println!("{text}");
        }
    }
    eprintln!("page: {}", page.display());
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
    let page = folder.join("index.html");
    write(&folder.join("result.json"), serde_json::to_string_pretty(runs)?)?;
    write(&page, page::render(options, runs))?;
    if let (Some(file), Some(picture)) = (&options.svg, page::picture(runs)) {
        write(file, picture)?;
    }
    Ok(page)
}

fn write(path: &Path, text: String) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
