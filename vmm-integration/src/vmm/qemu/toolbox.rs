// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parts of a Linux guest in QEMU: fetched, built, or named by environment variables.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};

use super::version;
use crate::fetch::{SetupEvent, Sysroot, Tool, build, guest_dir};
use crate::linux_guest::{BALLOON_DRIVER, Kernel, debug_kernel, initramfs};
use crate::vmm::named::given;

/// The remedy when the guest cannot be fetched.
const WAY_OUT: &str = "The guest's parts can also be given by environment variables: QEMU, the \
                       path of a qemu-system-x86_64 of version 10.2 or later, and GUEST_KERNEL, \
                       the path of a Linux kernel image";

/// The parts that boot a guest.
#[derive(Clone, Debug)]
pub struct Toolbox {
    /// QEMU for x86-64 guests, checked to know the device that a vhost-user balloon needs.
    pub qemu: Tool,
    /// First line of its `--version`.
    pub qemu_version: String,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The static init program.
    pub agent: PathBuf,
    /// strace, to count system calls of a VMM; absent when QEMU and the kernel were both given.
    pub strace: Option<Tool>,
}

impl Toolbox {
    /// An initramfs with the agent and the balloon driver, for a QEMU that another program starts.
    ///
    /// # Errors
    /// When a part cannot be read, or the initramfs not be written.
    pub fn initramfs(&self) -> Result<PathBuf> {
        let driver = self.kernel.balloon_module.as_deref().map(|file| (BALLOON_DRIVER, file));
        initramfs::pack(&guest_dir(), &self.agent, driver.as_slice())
    }
}

/// Sets up what is missing and returns the toolbox.
///
/// The work is done once per process; later calls return the same. What happens is printed to
/// stderr; see [`available_with`].
///
/// # Errors
/// When something can neither be found nor fetched; the message says what, and the way out.
pub fn available() -> Result<Toolbox> {
    let mut percent = None;
    available_with(&mut |event| match event {
        SetupEvent::Step(text) | SetupEvent::Warning(text) => eprintln!("guest: {text}"),
        SetupEvent::Download { packages, total_bytes } => {
            eprintln!("guest: downloading {packages} packages, {} MB", total_bytes / 1_000_000);
        }
        SetupEvent::Progress { fraction } => {
            let tenths = format!("{:.1}", fraction);
            if percent.replace(tenths.clone()).is_some_and(|before| before != tenths) {
                eprintln!("guest: downloaded {:.0} %", fraction * 100.0);
            }
        }
        SetupEvent::Unpack { done: 0, total } => eprintln!("guest: unpacking {total} packages"),
        SetupEvent::Unpack { .. } | SetupEvent::Compile { .. } => {}
    })
}

/// As [`available`], with progress passed to `events`.
///
/// # Errors
/// As [`available`].
pub fn available_with(events: &mut dyn FnMut(SetupEvent)) -> Result<Toolbox> {
    static TOOLBOX: OnceLock<Result<Toolbox, String>> = OnceLock::new();
    // Beside the cell, because its own initialiser is not allowed to fail and cannot borrow.
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let toolbox = TOOLBOX.get_or_init(|| set_up(events).map_err(|error| format!("{error:#}")));
    toolbox.clone().map_err(anyhow::Error::msg)
}

/// The kernel of Debian's stable release, which is older than the toolbox's, fetched if need be.
///
/// # Errors
/// As [`available`].
pub fn stable_kernel() -> Result<Kernel> {
    let mut say = |event| {
        if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
            eprintln!("guest: {text}");
        }
    };
    let sysroot = Sysroot::ensure_stable_kernel(&guest_dir(), &mut say)?;
    Kernel::with_modules_beside(&sysroot.kernel_image()?)
}

/// The guest's kernel with lockdep, KASAN and other checks, if it was built: a build takes too long for
/// a test.
///
/// # Errors
/// When it was not; the error names the command that builds it.
pub fn debug_kernel() -> Result<Kernel> {
    debug_kernel::existing()
}

fn set_up(events: &mut dyn FnMut(SetupEvent)) -> Result<Toolbox> {
    let guest_dir = guest_dir();
    let given_qemu = given("QEMU")?;
    let given_kernel = given("GUEST_KERNEL")?;
    let sysroot = if given_qemu.is_some() && given_kernel.is_some() {
        Sysroot::existing(&guest_dir)
    } else {
        Some(Sysroot::ensure(&guest_dir, events).context(WAY_OUT)?)
    };
    let missing = || anyhow::anyhow!("the unpacked packages are gone: run `cargo xtask setup`");

    let qemu = match given_qemu {
        Some(program) => Tool { program, args: Vec::new() },
        None => sysroot.as_ref().ok_or_else(missing)?.qemu(),
    };
    let qemu_version = version::check(&qemu)?;
    let kernel = match given_kernel {
        Some(image) => Kernel::given(&image)?,
        None => {
            Kernel::with_modules_beside(&sysroot.as_ref().ok_or_else(missing)?.kernel_image()?)?
        }
    };
    let agent = build::agent(&guest_dir, events)?;
    let strace = sysroot.map(|sysroot| sysroot.tool("strace"));
    Ok(Toolbox { qemu, qemu_version, kernel, agent, strace })
}
