// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pins the newest packages.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};

use super::apt::{Archive, PrivateApt};
use super::packages::{HEADER, Pins, RECIPES, file};
use super::{SetupEvent, guest_dir};

/// Pins the newest version of every package; returns what has changed, a line a package.
///
/// # Errors
/// When apt is missing or cannot reach the archive, or the file cannot be written.
pub fn update_packages(events: &mut dyn FnMut(SetupEvent)) -> Result<Vec<String>> {
    let mut text = HEADER.to_owned();
    let mut changes = Vec::new();
    let archive = Archive::of_this_machine()?;
    for recipe in RECIPES {
        events(SetupEvent::Step(format!("looking for newer packages of {}", recipe.name)));
        let folder = guest_dir().join("update");
        let plan = PrivateApt::new(&folder, &archive, recipe.suites)?.newest(recipe.packages);
        let _ = fs::remove_dir_all(&folder);
        let plan = plan?;
        changes.extend(Pins::of(recipe)?.differences(&plan));
        let pins: Pins = plan.into_iter().collect();
        write!(text, "\n[{}]\n{}", recipe.name, pins.text())?;
    }
    let path = file();
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(changes)
}
