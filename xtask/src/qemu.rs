// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask qemu`: QEMU with the project's own device.

use anyhow::{Result, ensure};
use clap::Args;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table};
use vmm_integration::vmm::qemu::scenes::{Device, Played, SCENES};
use vmm_integration::vmm::qemu::{self, built};

use crate::cargo::release_daemon;
use crate::setup::Shown;

/// Columns of the table on a terminal.
const WIDTH: u16 = 140;

/// What to do with it.
#[derive(Args)]
pub(crate) struct Options {
    /// Plays what a balloon lives through, with QEMU's generic device and with the project's own, and prints
    /// a table.
    ///
    /// The generic device is that of the QEMU that the tests fetch, as Debian ships it. The exit status is 1
    /// if the project's device does not pass.
    #[arg(long)]
    compare: bool,
    /// Only this scene; may be given several times.
    #[arg(long, value_name = "NAME", requires = "compare")]
    scene: Vec<String>,
}

/// Builds it, and prints the command that runs it or the table.
///
/// # Errors
/// When source or compiler cannot be had, something does not compile, or the device does not pass.
pub(crate) fn run(options: &Options) -> Result<()> {
    let names: Vec<_> = SCENES.iter().map(|scene| scene.name).collect();
    let unknown = options.scene.iter().find(|name| !names.contains(&name.as_str()));
    ensure!(
        unknown.is_none(),
        "no scene is called {unknown:?}: expected one of {}",
        names.join(", ")
    );
    let mut shown = Shown::new()?;
    let tool = built::build(&mut |event| shown.show(event));
    shown.finish();
    let tool = tool?;
    if options.compare {
        return compare(&options.scene);
    }
    let words: Vec<_> = tool.args.iter().map(|word| word.to_string_lossy()).collect();
    println!("{} {}", tool.program.display(), words.join(" "));
    Ok(())
}

fn compare(chosen: &[String]) -> Result<()> {
    let daemon = release_daemon()?;
    let (generic, own) = (qemu::available()?, built::toolbox()?);
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    let columns = [&generic, &own].map(|toolbox| toolbox.qemu_version.clone());
    table.set_header([
        "scene",
        &format!("generic device, {}", columns[0]),
        &format!("own device, {}", columns[1]),
    ]);
    let mut failed = Vec::new();
    for scene in SCENES
        .iter()
        .filter(|scene| chosen.is_empty() || chosen.iter().any(|name| name == scene.name))
    {
        eprintln!("{}: {}", scene.name, scene.about);
        let generic = scene.play(&generic, Device::Generic, &daemon);
        let own = scene.play(&own, Device::Own, &daemon);
        if !own.passed {
            failed.push(scene.name);
        }
        table.add_row([scene.name.to_owned(), cell(&generic), cell(&own)]);
    }
    println!("{table}");
    ensure!(failed.is_empty(), "the project's device fails: {}", failed.join(", "));
    Ok(())
}

fn cell(played: &Played) -> String {
    const MOST: usize = 200;
    let seen: Vec<_> = played.seen.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let seen: String = seen.join(" ").chars().take(MOST).collect();
    format!("{}: {seen}", if played.passed { "passes" } else { "FAILS" })
}
