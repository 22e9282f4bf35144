// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask kernel`: what is built for the guest's kernel.

use anyhow::Result;
use clap::Args;
use vmm_integration::linux_guest::{debug_kernel, modules};
use vmm_integration::vmm::qemu;

use crate::setup::Shown;

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// For the kernel of Debian's stable release instead of the newest one.
    #[arg(long)]
    stable: bool,
    /// Builds a kernel with lockdep, KASAN and other checks first, prints the path of its image, and
    /// builds the modules for it.
    ///
    /// It is of the same version as the guest's, from Debian's source package (170 MB), with the
    /// configuration vmm-integration/linux_guest/debug.config. It takes some 15 minutes on two
    /// processors and 3 GB in target/guest. An interrupted build goes on where it was. The result is
    /// kept until source or configuration change. GUEST_KERNEL=PATH runs tests and lab on it.
    #[arg(long, conflicts_with = "stable")]
    debug: bool,
}

/// Builds the modules and prints their paths.
///
/// # Errors
/// When source, headers or compiler cannot be had, or something does not compile.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut shown = Shown::new()?;
    let mut show = |event| shown.show(event);
    let mut build = || {
        let kernel = match (options.debug, options.stable) {
            (true, _) => debug_kernel::build(&mut show)?,
            (_, true) => qemu::stable_kernel()?,
            _ => qemu::available()?.kernel,
        };
        let modules = modules::build(&kernel, &mut show)?;
        anyhow::Ok((kernel, modules))
    };
    let built = build();
    shown.finish();
    let (kernel, modules) = built?;
    if options.debug {
        println!("{}", kernel.image.display());
    }
    for module in modules.values() {
        println!("{}", module.display());
    }
    Ok(())
}
