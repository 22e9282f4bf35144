// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Building the guest's init.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fetch::SetupEvent;
use crate::fetch::apt::output;

/// Named, so that the flags below are for the guest only and not for build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent with a cargo of its own and returns the program.
///
/// It is linked statically, since the guest has no libraries. The build goes to its own folder:
/// the surrounding cargo, which may hold the lock of its own, is neither waited for nor disturbed.
pub(crate) fn agent(guest_dir: &Path, events: &mut dyn FnMut(SetupEvent)) -> Result<PathBuf> {
    let target_dir = guest_dir.join("agent");
    let program = target_dir.join(TARGET).join("release/guest-agent");
    if !program.exists() {
        events(SetupEvent::Step("building the guest's init program".to_owned()));
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-agent/Cargo.toml");
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
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    output(&mut cargo).with_context(|| format!("building {}", manifest.display()))?;
    ensure!(program.exists(), "cargo built no {}", program.display());
    Ok(program)
}
