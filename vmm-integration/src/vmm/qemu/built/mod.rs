// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU with the project's own device, `qemu-device/`, built from Debian's source.
//!
//! The source is fetched by apt, and compiled in a Debian of its own (root only). An interrupted
//! build goes on where it was; a change of the device compiles the device and links.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{Toolbox, version};
use crate::fetch::{SetupEvent, Sysroot, Tool, guest_dir};

mod inside;
mod source;

use inside::Inside;

/// What builds it.
const COMMAND: &str = "cargo xtask qemu";
/// Another text builds it again, with the same source and device.
const STEPS: &str = "1";
/// The program, below the folder.
const PROGRAM: &str = "build/qemu-system-x86_64";
/// For x86-64 guests, without what no test needs.
const CONFIGURE: &[&str] = &[
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-system",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-vhost-user",
    "--disable-download",
    "--disable-install-blobs",
    "--disable-docs",
];

fn folder() -> PathBuf {
    guest_dir().join("qemu")
}

/// What it is built of.
fn expected_state() -> Result<String> {
    let device: String =
        source::DEVICE.iter().map(|(name, text)| format!("{name}\n{text}")).collect();
    Ok(format!("{STEPS}\n{}\n{}\n{device}", source::VERSION, configuration()?))
}

/// What its configuration depends on.
fn configuration() -> Result<String> {
    Ok(format!("{}\n{}", CONFIGURE.join("\n"), Sysroot::qemu_build_state()?))
}

/// The program in `folder`, if it was built of `state`.
fn complete(folder: &Path, state: &str) -> bool {
    fs::read_to_string(folder.join("state")).is_ok_and(|text| text == state)
        && folder.join(PROGRAM).is_file()
}

/// The program that was built, for a Debian 13.
///
/// # Errors
/// When there is none, or the device has changed since; the error names the command that builds it.
pub fn program() -> Result<PathBuf> {
    let built = complete(&folder(), &expected_state()?);
    ensure!(
        built,
        "no QEMU with the device vhost-user-balloon was built yet (build it with `{COMMAND}`)"
    );
    Ok(folder().join(PROGRAM))
}

/// The same with the firmware of the QEMU that is fetched.
///
/// # Errors
/// As [`program`].
pub fn existing() -> Result<Tool> {
    let program = program()?;
    let root = Sysroot::existing_qemu_build(&guest_dir());
    let root = root.with_context(|| format!("what QEMU was built in is gone (run `{COMMAND}`)"))?;
    let firmware =
        Sysroot::existing(&guest_dir()).context("no firmware (run `cargo xtask setup`)")?;
    let mut tool = root.program(&program);
    tool.args.extend(firmware.firmware_args());
    Ok(tool)
}

/// The same QEMU with a Linux guest's parts.
///
/// # Errors
/// As [`existing`], and as [`super::available`].
pub fn toolbox() -> Result<Toolbox> {
    let qemu = existing()?;
    let qemu_version = version::check(&qemu)?;
    Ok(Toolbox { qemu, qemu_version, ..super::available()? })
}

/// Builds QEMU with the device, unless it was done; returns the program.
///
/// # Errors
/// When the caller is not root, source or compiler cannot be fetched, something does not compile, or
/// the disk is full (1 GB).
pub fn build(events: &mut dyn FnMut(SetupEvent)) -> Result<Tool> {
    let state = expected_state()?;
    let folder = folder();
    if !complete(&folder, &state) {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let _lock = lock(&folder.join("build.lock"), events)?;
        if !complete(&folder, &state) {
            let _ = fs::remove_file(folder.join("state"));
            make(&fs::canonicalize(&folder)?, events)?;
            write(&folder.join("state"), &state)?;
        }
    }
    Sysroot::ensure(&guest_dir(), events).context("the firmware")?;
    existing()
}

/// Waits for the lock. What is started inherits it: a compiler that outlives this process keeps it.
fn lock(path: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<File> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        events(SetupEvent::Step("waiting for another process that builds QEMU".to_owned()));
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    fcntl_setfd(&file, FdFlags::empty()).context("passing the lock on")?;
    Ok(file)
}

fn make(folder: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    ensure!(is_root, "building QEMU needs root: it is compiled in a Debian of its own");
    let root = Sysroot::ensure_qemu_build(&guest_dir(), events)?;
    let inside = Inside::new(&root, folder)?;
    source::unpack(folder, &inside, events)?;
    source::apply(&folder.join("source"))?;
    configure(folder, &inside, events)?;
    events(SetupEvent::Step("compiling QEMU".to_owned()));
    inside.compile(events)
}

/// Configures the build, unless it is configured like this.
fn configure(folder: &Path, inside: &Inside, events: &mut dyn FnMut(SetupEvent)) -> Result<()> {
    let (build, mark) = (folder.join("build"), folder.join("build/.configured"));
    let configuration = configuration()?;
    if fs::read_to_string(&mark).is_ok_and(|text| text == configuration) {
        return Ok(());
    }
    events(SetupEvent::Step("configuring QEMU".to_owned()));
    if build.exists() {
        fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))?;
    }
    fs::create_dir(&build).with_context(|| format!("creating {}", build.display()))?;
    inside
        .run("build", "../source/configure", CONFIGURE, &mut |_| {})
        .context("configuring QEMU")?;
    write(&mark, &configuration)
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_another_state_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::create_dir(folder.join("build")).unwrap();
        write(&folder.join(PROGRAM), "").unwrap();
        assert!(!complete(folder, "this"));
        write(&folder.join("state"), "other").unwrap();
        assert!(!complete(folder, "this"));
        write(&folder.join("state"), "this").unwrap();
        assert!(complete(folder, "this"));
        fs::remove_file(folder.join(PROGRAM)).unwrap();
        assert!(!complete(folder, "this"));
    }

    #[test]
    fn a_lock_is_waited_for_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut said = Vec::new();
        let first = lock(&path, &mut |event| said.push(event)).unwrap();
        assert_eq!(said, []);
        let second = std::thread::scope(|scope| {
            let (told, waits) = std::sync::mpsc::channel();
            let path = &path;
            let waiting = scope.spawn(move || lock(path, &mut |event| told.send(event).unwrap()));
            let waits = waits.recv().unwrap();
            assert!(matches!(waits, SetupEvent::Step(text) if text.starts_with("waiting for")));
            drop(first);
            waiting.join().unwrap()
        });
        second.unwrap();
    }
}
