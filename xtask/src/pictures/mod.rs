// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask pictures`: the pictures of `top` and of the board, from real guests.

mod board;
mod drawing;
mod http;
mod prometheus;
mod scene;
mod screen;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{cargo, setup};
use board::Board;
use prometheus::Server;
use scene::Scene;

/// Where the board is.
const BOARD: &str = "packaging/grafana/balloon.json";

/// How the pictures are made.
#[derive(Args)]
pub(crate) struct Options {
    /// Folder for the pictures.
    #[arg(long, value_name = "FOLDER", default_value = "docs")]
    out: PathBuf,
    /// Seconds that the board shows at least, from 40 to 600.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(40..=600))]
    seconds: u64,
}

/// Boots guests, has them use and free memory, records `top` and draws the board.
///
/// # Errors
/// If something does not run, the screen does not show what a key did, or a panel has no data.
pub(crate) fn run(options: &Options) -> Result<()> {
    let toolbox = setup::guest()?;
    let packages = ["--package", "vhost-device-balloon", "--package", "vhost-device-balloon-host"];
    cargo::run(cargo::cargo(&["build", "--locked"]).args(packages))?;
    let scene = Scene::start(&toolbox, &cargo::target().join("debug"))?;
    let server = Server::start(&scene.metrics)?;
    let since = Instant::now();
    let recorded = scene.play(Duration::from_secs(options.seconds), || {
        screen::record(&scene).context("the screen of top")
    })?;
    let text = fs::read_to_string(cargo::root().join(BOARD)).context(BOARD)?;
    let board = Board::parse(&text)?;
    let answers = board.ask(&server, since.elapsed())?;
    fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let write = |name: &str, text: &str| -> Result<()> {
        let path: &Path = &options.out.join(name);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
        Ok(())
    };
    write("top.svg", &recorded.picture)?;
    write("top-demo.svg", &recorded.animation)?;
    write("top-demo.cast", &recorded.asciicast)?;
    write("board.svg", &drawing::board(&answers))?;
    let empty: Vec<_> = answers.iter().filter(|panel| panel.is_empty()).collect();
    let titles: Vec<_> = empty.iter().map(|panel| panel.title.as_str()).collect();
    ensure!(titles.is_empty(), "panels without data: {}", titles.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs a Linux guest and promtool and a full run: cargo xtask test"]
    fn each_panel_of_the_board_has_data() {
        let folder = tempfile::tempdir().expect("a folder");
        run(&Options { out: folder.path().to_owned(), seconds: 90 }).expect("pictures");
        for name in ["top.svg", "top-demo.svg", "top-demo.cast", "board.svg"] {
            let text = fs::read_to_string(folder.path().join(name)).expect(name);
            assert!(text.len() > 5000, "{name}: {} bytes", text.len());
        }
    }
}
