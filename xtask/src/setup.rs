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
    let mut shown = Shown::new()?;
    let mut show = |event| shown.show(event);
    let result = qemu::available_with(&mut show);
    let parts = UserModeLinuxParts::ensure(&mut show);
    shown.finish();
    let toolbox = result?;
    eprintln!("guest: {}, Linux {}", toolbox.qemu_version, toolbox.kernel.release);
    // A second guest, without which its test says that it did not run.
    match parts {
        Ok(parts) => eprintln!("guest: {}", parts.kernel.display()),
        Err(error) => eprintln!("no user-mode Linux: {error:#}"),
    }
    Ok(toolbox)
}

/// A set-up as a bar on stderr, or as lines where stderr is no terminal.
pub(crate) struct Shown {
    bar: ProgressBar,
    spin: ProgressStyle,
    percent: ProgressStyle,
    count: ProgressStyle,
    said: String,
}

impl Shown {
    /// Shows nothing yet.
    ///
    /// # Errors
    /// Never: the templates are right.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            bar: ProgressBar::no_length(),
            spin: ProgressStyle::with_template("{spinner} {msg}")?,
            percent: ProgressStyle::with_template("{msg} [{bar:40}] {percent} %")?,
            count: ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len}")?,
            said: String::new(),
        })
    }

    /// Shows one event.
    pub(crate) fn show(&mut self, event: SetupEvent) {
        let Self { bar, spin, percent, count, said } = self;
        match event {
            SetupEvent::Step(text) => {
                if bar.is_hidden() && text != *said {
                    eprintln!("{text}");
                }
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_style(spin.clone());
                bar.set_message(text.clone());
                *said = text;
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
            SetupEvent::Compile { done, about } => {
                bar.set_style(count.clone());
                bar.set_length(about.max(done) as u64);
                bar.set_position(done as u64);
                bar.set_message("compiling");
                if bar.is_hidden() && done.is_multiple_of(100) {
                    eprintln!("{done} files compiled, of about {about}");
                }
            }
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
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
