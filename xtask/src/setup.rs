// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shows the set-up of the guest while it goes on.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use vmm_integration::fetch::{self, SetupEvent};
use vmm_integration::vmm::qemu::{self, Toolbox};
use vmm_integration::vmm::user_mode_linux::UserModeLinuxParts;

/// What a guest needs, set up if it is missing, with progress on stderr.
///
/// # Errors
/// If it cannot be had; the text says what and what can be done.
pub(crate) fn guest() -> Result<Toolbox> {
    let bar = ProgressBar::no_length();
    let spin = ProgressStyle::with_template("{spinner} {msg}")?;
    let percent = ProgressStyle::with_template("{msg} [{bar:40}] {percent} %")?;
    let count = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len}")?;
    let mut said = String::new();
    let mut show = |event| match event {
        SetupEvent::Step(text) => {
            if bar.is_hidden() && text != said {
                eprintln!("{text}");
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar.set_style(spin.clone());
            bar.set_message(text.clone());
            said = text;
        }
        SetupEvent::Warning(text) => bar.suspend(|| eprintln!("warning: {text}")),
        SetupEvent::Download { packages, total_bytes } => {
            let text = format!("fetching {packages} packages, {} MB", total_bytes / 1_000_000);
            bar.suspend(|| eprintln!("{text}"));
            bar.set_style(percent.clone());
            bar.set_length(1000);
            bar.set_message("fetching");
        }
        SetupEvent::Progress { fraction } => bar.set_position(thousandths(fraction)),
        SetupEvent::Unpack { done, total } => {
            bar.set_style(count.clone());
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message("unpacking");
        }
    };
    let result = qemu::available_with(&mut show);
    let parts = UserModeLinuxParts::ensure(&mut show);
    bar.finish_and_clear();
    let toolbox = result?;
    eprintln!("guest: {}, Linux {}", toolbox.qemu_version, toolbox.kernel.release);
    // A second guest, without which its test says that it did not run.
    match parts {
        Ok(parts) => eprintln!("guest: {}", parts.kernel.display()),
        Err(error) => eprintln!("no user-mode Linux: {error:#}"),
    }
    Ok(toolbox)
}

/// Pins the newest packages of the guests and the browser, and prints what has changed.
///
/// # Errors
/// If apt cannot reach the archive, or the list cannot be written.
pub(crate) fn update_packages() -> Result<()> {
    let changes = fetch::update_packages(&mut |event| {
        if let SetupEvent::Step(text) = event {
            eprintln!("{text}");
        }
    })?;
    changes.iter().for_each(|change| println!("{change}"));
    eprintln!("{} packages have changed", changes.len());
    Ok(())
}

/// A fraction as thousandths, for a bar.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and 1000
fn thousandths(fraction: f64) -> u64 {
    (fraction.clamp(0.0, 1.0) * 1000.0) as u64
}
