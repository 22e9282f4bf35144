// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask kernel`: what is built for the guest's kernel.

use anyhow::Result;
use clap::Args;
use vmm_integration::fetch::SetupEvent;
use vmm_integration::linux_guest::modules;
use vmm_integration::vmm::qemu;

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// For the kernel of Debian's stable release instead of the newest one.
    #[arg(long)]
    stable: bool,
}

/// Builds the modules and prints their paths.
///
/// # Errors
/// When the headers or the compiler cannot be had, or a module does not compile.
pub(crate) fn run(options: &Options) -> Result<()> {
    let kernel = match options.stable {
        true => qemu::stable_kernel()?,
        false => qemu::available()?.kernel,
    };
    let mut say = |event| {
        if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
            eprintln!("{text}");
        }
    };
    for module in modules::build(&kernel, &mut say)?.values() {
        println!("{}", module.display());
    }
    Ok(())
}
