// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds the programs that run inside a guest, and the VMM that is one of ours.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::apt::output;
use super::{SetupEvent, guest_dir};

/// Named, so that the flags below are for the guest only and not for build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_END: &str = "\u{1f}";
/// No vector instructions, which KVM cannot emulate where it has to.
const NO_VECTORS: [&str; 2] =
    ["-Ctarget-feature=-sse,-sse2,+soft-float", "-Crelocation-model=static"];

/// Builds the agent and returns the program. It is linked statically, since the guest has no libraries.
pub(crate) fn agent(guest_dir: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf> {
    let target_dir = guest_dir.join("agent");
    if !program(&target_dir, "guest-agent").exists() {
        events(SetupEvent::Step("building the guest's init program".to_owned()));
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-agent/Cargo.toml");
    build(&manifest, &target_dir, "guest-agent", &["-Ctarget-feature=+crt-static"])
}

/// Builds the bare guest and returns its image.
///
/// # Errors
/// When cargo cannot build it.
pub fn bare_guest() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    once(&BUILT, build_bare_guest)
}

/// What was built already, or now by `build`: a VMM is started without a look at its sources.
fn once(built: &OnceLock<PathBuf>, build: impl FnOnce() -> Result<PathBuf>) -> Result<PathBuf> {
    match built.get() {
        Some(path) => Ok(path.clone()),
        None => build().map(|path| built.get_or_init(|| path).clone()),
    }
}

fn build_bare_guest() -> Result<PathBuf> {
    let target_dir = guest_dir().join("bare");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-driver/bare/Cargo.toml");
    // The compiler warns that it may refuse these flags one day. Without them the guest still runs
    // wherever the processor executes its instructions.
    build(&manifest, &target_dir, "bare-guest", &NO_VECTORS)
        .or_else(|_| build(&manifest, &target_dir, "bare-guest", &[]))
}

/// Builds the VMM of the library alioth and returns its program.
///
/// # Errors
/// When cargo cannot build it.
pub(crate) fn alioth(events: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let target_dir = guest_dir().join("alioth");
    if !program(&target_dir, "alioth-vmm").exists() {
        events(SetupEvent::Step("building alioth".to_owned()));
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("alioth/Cargo.toml");
    once(&BUILT, || build(&manifest, &target_dir, "alioth-vmm", &[]))
}

fn program(target_dir: &Path, name: &str) -> PathBuf {
    target_dir.join(TARGET).join("release").join(name)
}

/// Builds a program with a cargo of its own.
///
/// The build goes to its own folder: the surrounding cargo, which may hold the lock of its own, is
/// neither waited for nor disturbed.
fn build(manifest: &Path, target_dir: &Path, name: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Flags and wrappers of the caller (sanitizers, coverage, clippy) are not meant for the guest.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_caller = text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_BUILD_")
            || text.starts_with("CARGO_TARGET_")
            || matches!(&*text, "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER");
        if of_caller {
            cargo.env_remove(name);
        }
    }
    cargo
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(FLAG_END));
    output(&mut cargo).with_context(|| format!("building {}", manifest.display()))?;
    let program = program(target_dir, name);
    ensure!(program.exists(), "cargo built no {}", program.display());
    Ok(program)
}
