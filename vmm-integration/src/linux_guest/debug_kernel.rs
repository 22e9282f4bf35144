// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel for the guest that checks itself: lockdep, KASAN, `DEBUG_VM` and more, as
//! `linux_guest/debug.config` says. It is built from Debian's source of the guest's kernel.
//!
//! An interrupted build goes on where it was. A changed configuration compiles only what depends on
//! it.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, thread};

use anyhow::{Context, Result, bail, ensure};

use super::Kernel;
use crate::fetch::apt::{output, run_with_lines};
use crate::fetch::{SetupEvent, Sysroot, guest_dir};

/// What builds it.
const COMMAND: &str = "cargo xtask kernel --debug";
/// Another text builds it again, with the same source and configuration.
const STEPS: &str = "1";
/// What is asked of Kconfig.
const CONFIGURATION: &str = include_str!("../../linux_guest/debug.config");
/// How many files are compiled, about: for the progress.
const FILES: usize = 1300;

/// The parts of the folder `debug-kernel`.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(guest_dir().join("debug-kernel"))
    }

    /// The unpacked source, whole if it is there.
    fn source(&self) -> PathBuf {
        self.0.join("source")
    }

    /// Where it is compiled, and what modules are built against.
    fn build(&self) -> PathBuf {
        self.0.join("build")
    }

    /// The image, with the modules beside it in `kernel`.
    fn image(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    /// What the image was built of; absent while it is built.
    fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// The image, if it was built of `state`.
    fn kernel(&self, state: &str) -> Result<Option<Kernel>> {
        match fs::read_to_string(self.state()) {
            Ok(text) if text == state => Kernel::with_modules_beside(&self.image()).map(Some),
            _ => Ok(None),
        }
    }
}

/// What the kernel is built of.
fn expected_state() -> Result<String> {
    Ok(format!("{STEPS}\n{}\n{CONFIGURATION}", Sysroot::kernel_source_state()?))
}

/// The debug kernel that was built.
///
/// # Errors
/// When there is none, or its source or configuration has changed; the error names the command that
/// builds it.
pub(crate) fn existing() -> Result<Kernel> {
    let kernel = Folder::new().kernel(&expected_state()?)?;
    kernel.with_context(|| format!("no debug kernel was built yet (build it with `{COMMAND}`)"))
}

/// The folder to build modules in, if `kernel` is the debug kernel.
pub(super) fn build_folder(kernel: &Kernel) -> Option<PathBuf> {
    let folder = Folder::new();
    let same = fs::canonicalize(&kernel.image).ok()? == fs::canonicalize(folder.image()).ok()?;
    fs::canonicalize(folder.build()).ok().filter(|_| same)
}

/// Builds the debug kernel, unless it was done.
///
/// # Errors
/// When the source cannot be fetched, Kconfig does not take the configuration, the compiler fails, or
/// the disk is full (3 GB).
pub fn build(events: &mut dyn FnMut(SetupEvent)) -> Result<Kernel> {
    let root = Sysroot::ensure_kernel_source(&guest_dir(), events)?;
    let root = fs::canonicalize(&root).with_context(|| format!("finding {}", root.display()))?;
    let state = expected_state()?;
    let folder = Folder::new();
    fs::create_dir_all(&folder.0).with_context(|| format!("creating {}", folder.0.display()))?;
    let lock = folder.0.join("build.lock");
    let lock_file = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
    if lock_file.try_lock().is_err() {
        events(SetupEvent::Step("waiting for another process that builds the kernel".to_owned()));
        lock_file.lock().with_context(|| format!("locking {}", lock.display()))?;
    }
    if let Some(kernel) = folder.kernel(&state)? {
        return Ok(kernel);
    }
    let _ = fs::remove_file(folder.state());
    unpack(&root, &folder, events)?;
    let folder = Folder(fs::canonicalize(&folder.0)?);
    configure(&root, &folder)?;
    compile(&root, &folder, events)?;
    install(&folder)?;
    write(&folder.state(), &state)?;
    folder.kernel(&state)?.context("the debug kernel was built and is gone")
}

/// Unpacks the source, unless this very one is there.
fn unpack(root: &Path, folder: &Folder, events: &mut dyn FnMut(SetupEvent)) -> Result<()> {
    let (source, partial) = (folder.source(), folder.0.join("source.partial"));
    let state = Sysroot::kernel_source_state()?;
    let mark = |folder: &Path| folder.join(".unpacked");
    if fs::read_to_string(mark(&source)).is_ok_and(|text| text == state) {
        return Ok(());
    }
    events(SetupEvent::Step("unpacking the kernel's source".to_owned()));
    for old in [&source, &partial, &folder.build()] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let sources = root.join("usr/src");
    let archive = fs::read_dir(&sources)
        .with_context(|| format!("listing {}", sources.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(".tar.xz"))
        .with_context(|| format!("no archive of a kernel's source in {}", sources.display()))?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&partial);
    output(tar.arg("--strip-components=1").env("PATH", path_of(root)))
        .with_context(|| format!("unpacking {}", archive.display()))?;
    write(&mark(&partial), &state)?;
    fs::rename(&partial, &source).with_context(|| format!("naming {}", source.display()))
}

/// Makes the configuration, and checks that Kconfig has taken each line of it.
fn configure(root: &Path, folder: &Folder) -> Result<()> {
    let build = folder.build();
    fs::create_dir_all(&build).with_context(|| format!("creating {}", build.display()))?;
    let compiler = root.join("usr/bin/gcc-14");
    // Programs of the build itself are linked with the folder's libraries, which may be newer than
    // those of this machine, and find them when they run.
    let host_compiler = folder.0.join("hostcc");
    let (compiler, root_text) = (compiler.display(), root.display());
    let script = format!(
        "#!/bin/sh\nexec '{compiler}' '--sysroot={root_text}' \
         '-Wl,--dynamic-linker={root_text}/usr/lib64/ld-linux-x86-64.so.2' \
         '-Wl,-rpath={root_text}/usr/lib/x86_64-linux-gnu' \"$@\"\n"
    );
    write(&host_compiler, &script)?;
    fs::set_permissions(&host_compiler, Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", host_compiler.display()))?;
    // Debian's Makefile reads this file, also when a module is built here.
    let variables = format!("CC = {compiler}\nHOSTCC = {}\n", host_compiler.display());
    write(&build.join(".kernelvariables"), &variables)?;
    let asked = folder.0.join("debug.config");
    write(&asked, CONFIGURATION)?;
    let mut make = make(root, folder);
    output(make.env("KCONFIG_ALLCONFIG", asked).arg("allnoconfig"))
        .context("configuring the debug kernel")?;
    let config = build.join(".config");
    let config =
        fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
    let lost = lost_lines(CONFIGURATION, &config);
    ensure!(
        lost.is_empty(),
        "Kconfig does not take all of linux_guest/debug.config: {} (see what each depends on)",
        lost.join(", ")
    );
    Ok(())
}

/// The lines of `asked` that are not in `config`.
fn lost_lines<'a>(asked: &'a str, config: &str) -> Vec<&'a str> {
    let has = |line: &str| config.lines().any(|other| other == line);
    asked.lines().filter(|line| line.starts_with("CONFIG_") && !has(line)).collect()
}

fn compile(root: &Path, folder: &Folder, events: &mut dyn FnMut(SetupEvent)) -> Result<()> {
    events(SetupEvent::Step("building the debug kernel".to_owned()));
    let mut make = make(root, folder);
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make.arg(format!("--jobs={jobs}")).args(["bzImage", "modules"]);
    let mut done = 0;
    run_with_lines(&mut make, &mut |line| {
        let step = line.split_whitespace().next().unwrap_or_default();
        if ["CC", "AS", "HOSTCC"].contains(&step) || line.contains(" CC [M] ") {
            done += 1;
            events(SetupEvent::Compile { done, about: FILES });
        }
    })
    .context("building the debug kernel")
}

/// Puts the image and its modules where [`Kernel`] looks for them.
fn install(folder: &Folder) -> Result<()> {
    let build = folder.build();
    let copy = |from: &Path, to: &Path| -> Result<()> {
        let parent = to.parent().context("a file outside of any folder")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::copy(from, to).map(drop).with_context(|| format!("copying {}", from.display()))
    };
    copy(&build.join("arch/x86/boot/bzImage"), &folder.image())?;
    let modules = folder.0.join("kernel");
    if modules.exists() {
        fs::remove_dir_all(&modules).with_context(|| format!("removing {}", modules.display()))?;
    }
    let order = build.join("modules.order");
    let order =
        fs::read_to_string(&order).with_context(|| format!("reading {}", order.display()))?;
    for object in order.lines() {
        let Some(module) = object.strip_suffix(".o") else {
            bail!("modules.order names {object}: expected an object");
        };
        let module = format!("{module}.ko");
        copy(&build.join(&module), &modules.join(&module))?;
    }
    Ok(())
}

/// A command that runs the kernel's Makefile with the fetched programs and nothing of this machine's
/// environment.
fn make(root: &Path, folder: &Folder) -> Command {
    let mut make = Command::new(root.join("usr/bin/make"));
    make.env_clear().env("PATH", path_of(root));
    // As bison and flex were built they look for these in /usr.
    make.env("M4", root.join("usr/bin/m4")).env("BISON_PKGDATADIR", root.join("usr/share/bison"));
    // The name of a machine is of no use in the kernel's version, and the source is in no repository
    // of its own.
    make.env("KBUILD_BUILD_USER", "xtask").env("KBUILD_BUILD_HOST", "localhost");
    make.env("LOCALVERSION", "");
    make.arg("--directory").arg(folder.source());
    let mut build = OsString::from("O=");
    build.push(folder.build());
    make.arg(build);
    make
}

/// The fetched programs, then those of this machine.
fn path_of(root: &Path) -> OsString {
    let mut path = root.join("usr/bin").into_os_string();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_kconfig_drops_are_named() {
        let asked = "# a comment\n\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=\"x\"\n";
        let config = "CONFIG_A=y\nCONFIG_AB=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
        assert_eq!(lost_lines(asked, config), ["CONFIG_B=m"]);
        assert!(lost_lines(asked, &format!("{config}CONFIG_B=m\n")).is_empty());
    }

    #[test]
    fn a_kernel_of_another_state_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder(folder.path().to_owned());
        assert_eq!(folder.kernel("this").unwrap(), None);
        write(&folder.state(), "other").unwrap();
        assert_eq!(folder.kernel("this").unwrap(), None);
        write(&folder.state(), "this").unwrap();
        folder.kernel("this").unwrap_err();
    }

    #[test]
    fn modules_lie_below_the_image() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder(temporary.path().to_owned());
        let boot = folder.build().join("arch/x86/boot");
        let driver = folder.build().join("drivers/virtio");
        for sub in [&boot, &driver] {
            fs::create_dir_all(sub).unwrap();
        }
        write(&boot.join("bzImage"), "image").unwrap();
        write(&driver.join("virtio_balloon.ko"), "\x7fELF").unwrap();
        write(&folder.build().join("modules.order"), "drivers/virtio/virtio_balloon.o\n").unwrap();
        install(&folder).unwrap();
        let kernel = Kernel::with_modules_beside(&folder.image()).unwrap();
        assert!(kernel.balloon_module.unwrap().starts_with(folder.0.join("kernel")));
    }
}
