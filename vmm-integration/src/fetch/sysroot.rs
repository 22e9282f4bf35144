// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU and a Linux kernel, unpacked from Debian packages into a folder.
//!
//! Nothing is installed: the packages are unpacked as they are, and QEMU runs in place through
//! the dynamic loader that comes with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::apt::{Archive, PrivateApt, output};
use super::install::install_packages;
use super::packages::{
    DEBIAN, Form, GUEST, HEADERS, KERNEL_SOURCE, PROMETHEUS, Pins, QEMU_BUILD, Recipe,
    STABLE_HEADERS, STABLE_KERNEL, USER_MODE_LINUX,
};
use super::wrap::wrap_programs;
use super::{SetupEvent, Tool};

/// Name of the file that marks the folder as complete.
const STAMP: &str = ".recipe";

/// The folder with the unpacked packages.
#[derive(Clone, Debug)]
pub struct Sysroot {
    root: PathBuf,
}

impl Sysroot {
    /// Makes the folder `root` below `guest_dir`, unless it exists.
    ///
    /// Can be interrupted at any time and run by several processes at once.
    ///
    /// # Errors
    /// When apt or dpkg are missing, apt knows no Debian archive or cannot reach it, or the disk
    /// is full.
    pub fn ensure(guest_dir: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<Self> {
        Self::make(&GUEST, guest_dir, events)
    }

    /// The same for the kernel of Debian's stable release: only a kernel, and no program.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_stable_kernel(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<Self> {
        Self::make(&STABLE_KERNEL, guest_dir, events)
    }

    /// The same for user-mode Linux; returns its folder.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_user_mode_linux(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<PathBuf> {
        Self::make(&USER_MODE_LINUX, guest_dir, events).map(|sysroot| sysroot.root)
    }

    /// The headers of the kernel of [`Sysroot::ensure`] with a compiler; returns their folder.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_headers(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<PathBuf> {
        Self::make(&HEADERS, guest_dir, events).map(|sysroot| sysroot.root)
    }

    /// The same for the kernel of Debian's stable release.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_stable_headers(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<PathBuf> {
        Self::make(&STABLE_HEADERS, guest_dir, events).map(|sysroot| sysroot.root)
    }

    /// The source of the kernel of [`Sysroot::ensure`] with a compiler; returns their folder.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_kernel_source(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<PathBuf> {
        Self::make(&KERNEL_SOURCE, guest_dir, events).map(|sysroot| sysroot.root)
    }

    /// An installation of Debian 13 with systemd, libvirt and QEMU; returns its folder.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`], and when the caller is not root.
    pub(crate) fn ensure_debian(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<PathBuf> {
        Self::make(&DEBIAN, guest_dir, events).map(|sysroot| sysroot.root)
    }

    /// An installation of Debian 13 that compiles QEMU.
    ///
    /// # Errors
    /// As [`Sysroot::ensure_debian`].
    pub(crate) fn ensure_qemu_build(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<Self> {
        Self::make(&QEMU_BUILD, guest_dir, events)
    }

    /// The same for Prometheus.
    ///
    /// # Errors
    /// As [`Sysroot::ensure`].
    pub(crate) fn ensure_prometheus(
        guest_dir: &Path,
        events: &mut dyn FnMut(SetupEvent),
    ) -> Result<Self> {
        Self::make(&PROMETHEUS, guest_dir, events)
    }

    /// The installation of [`Sysroot::ensure_qemu_build`], if it is there and complete.
    pub(crate) fn existing_qemu_build(guest_dir: &Path) -> Option<Self> {
        Self::complete(&QEMU_BUILD, guest_dir, &Pins::of(&QEMU_BUILD).ok()?)
    }

    /// A text that differs when that installation does.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(crate) fn qemu_build_state() -> Result<String> {
        Ok(stamp_of(&QEMU_BUILD, &Pins::of(&QEMU_BUILD)?))
    }

    /// A text that differs when the source or the compiler of [`Sysroot::ensure_kernel_source`] does.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(crate) fn kernel_source_state() -> Result<String> {
        Ok(stamp_of(&KERNEL_SOURCE, &Pins::of(&KERNEL_SOURCE)?))
    }

    fn make(recipe: &Recipe, guest_dir: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<Self> {
        let pins = Pins::of(recipe)?;
        if let Some(sysroot) = Self::complete(recipe, guest_dir, &pins) {
            return Ok(sysroot);
        }
        ensure!(cfg!(target_arch = "x86_64"), "the packages are for x86-64 hosts only");
        fs::create_dir_all(guest_dir)
            .with_context(|| format!("creating {}", guest_dir.display()))?;
        let _lock = lock(&guest_dir.join("setup.lock"), events)?;
        // Another process may have done it meanwhile.
        if let Some(sysroot) = Self::complete(recipe, guest_dir, &pins) {
            return Ok(sysroot);
        }
        events(SetupEvent::Step(format!(
            "{} is missing: fetching {} into {}",
            recipe.name,
            recipe.packages.join(", "),
            guest_dir.display()
        )));
        let apt_dir = guest_dir.join("apt");
        let apt = PrivateApt::new(&apt_dir, &Archive::of_this_machine()?, recipe.suites)?;
        let files = apt.download(recipe.packages, &pins, events)?;

        let partial = guest_dir.join(format!("{}.partial", recipe.name));
        let root = guest_dir.join(recipe.name);
        for old in [&partial, &root] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
        for (done, file) in files.iter().enumerate() {
            events(SetupEvent::Unpack { done, total: files.len() });
            output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&partial))
                .with_context(|| format!("unpacking {}", file.display()))?;
        }
        match recipe.form {
            Form::Unpacked => {}
            Form::Wrapped => {
                let guest_dir = fs::canonicalize(guest_dir)
                    .with_context(|| format!("finding {}", guest_dir.display()))?;
                wrap_programs(&partial, &guest_dir.join(recipe.name))?;
            }
            Form::Installed => install_packages(&partial, &files, events)?,
        }
        let stamp = partial.join(STAMP);
        fs::write(&stamp, stamp_of(recipe, &pins))
            .with_context(|| format!("writing {}", stamp.display()))?;
        fs::rename(&partial, &root).with_context(|| format!("naming {}", root.display()))?;
        // The packages are not needed any more; if they stay, they only take room.
        let _ = fs::remove_dir_all(&apt_dir);
        events(SetupEvent::Step(format!("{} is set up", recipe.name)));
        Ok(Self { root })
    }

    /// The folder, if it is there and complete.
    pub fn existing(guest_dir: &Path) -> Option<Self> {
        Self::complete(&GUEST, guest_dir, &Pins::of(&GUEST).ok()?)
    }

    fn complete(recipe: &Recipe, guest_dir: &Path, pins: &Pins) -> Option<Self> {
        let root = guest_dir.join(recipe.name);
        let stamp = fs::read_to_string(root.join(STAMP)).ok()?;
        // One without pins was unpacked before packages were pinned.
        (stamp == stamp_of(recipe, pins) || stamp == recipe.stamp).then_some(Self { root })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.root
    }

    /// A program of the folder, `usr/bin/NAME`, run with the folder's own loader and libraries.
    pub fn tool(&self, name: &str) -> Tool {
        self.program(&self.root.join("usr/bin").join(name))
    }

    /// A program that was linked with the folder's libraries.
    pub(crate) fn program(&self, path: &Path) -> Tool {
        let root = |path: &str| self.root.join(path);
        Tool {
            program: root("usr/lib64/ld-linux-x86-64.so.2"),
            args: vec![
                "--library-path".into(),
                root("usr/lib/x86_64-linux-gnu").into(),
                path.into(),
            ],
        }
    }

    /// QEMU with the folders of its firmware.
    pub(crate) fn qemu(&self) -> Tool {
        let mut tool = self.tool("qemu-system-x86_64");
        tool.args.extend(self.firmware_args());
        tool
    }

    /// QEMU's arguments that say where its firmware is.
    pub(crate) fn firmware_args(&self) -> impl Iterator<Item = OsString> {
        ["usr/share/qemu", "usr/share/seabios"]
            .into_iter()
            .flat_map(|data| ["-L".into(), self.root.join(data).into()])
    }

    /// The kernel image: beside its modules, or in `/boot`, where Debian's stable release has it.
    pub(crate) fn kernel_image(&self) -> Result<PathBuf> {
        let modules = self.root.join("usr/lib/modules");
        let mut images: Vec<PathBuf> = fs::read_dir(&modules)
            .with_context(|| format!("listing {}", modules.display()))?
            .filter_map(|entry| {
                let folder = entry.ok()?.path();
                let release = folder.file_name()?.to_string_lossy().into_owned();
                let boot = self.root.join(format!("boot/vmlinuz-{release}"));
                [folder.join("vmlinuz"), boot].into_iter().find(|image| image.exists())
            })
            .collect();
        images.sort();
        images.pop().with_context(|| {
            format!(
                "no kernel image for the modules in {}: remove the folder and run `cargo xtask setup`",
                modules.display()
            )
        })
    }
}

/// What marks a folder that was made of `recipe` while these versions were pinned.
fn stamp_of(recipe: &Recipe, pins: &Pins) -> String {
    format!("{}\n{}", recipe.stamp, pins.text())
}

/// Waits for the lock; it is released when the file is closed, thus also by a crash.
fn lock(path: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<File> {
    let file = File::create(path).with_context(|| format!("opening {}", path.display()))?;
    let mut result = flock(&file, FlockOperation::NonBlockingLockExclusive);
    if result == Err(Errno::WOULDBLOCK) {
        events(SetupEvent::Step("waiting for another process that sets the guest up".to_owned()));
        result = flock(&file, FlockOperation::LockExclusive);
    }
    result.with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}
