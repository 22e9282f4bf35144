// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stamps what is built with the commit that it is built of, for the records of the lab.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What of the workspace is in the lab's program and in the daemon that it measures.
const SOURCES: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    ".cargo",
    "src",
    "guest-driver/Cargo.toml",
    "guest-driver/src",
    "guest-driver/explore",
    "vmm-integration/Cargo.toml",
    "vmm-integration/src",
    "vmm-integration/guest-agent",
    "vmm-integration/lab",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rustc-env=LAB_COMMIT={}", commit(&root).unwrap_or_default());
}

/// The commit, with `-dirty` behind it if a source differs from it; none without git, or where the
/// workspace lies in somebody else's repository.
fn commit(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        // Reading must not touch the index: another git may be at work.
        let mut git = Command::new("git");
        let output = git.arg("--no-optional-locks").args(args).current_dir(root).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim_end().to_owned())
    };
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // HEAD changes when a branch is checked out, its log with each commit as well. A path that does
    // not exist would have this run at each build.
    for name in ["HEAD", "logs/HEAD"] {
        let path = root.join(git(&["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = ["status", "--porcelain", "--"];
    let changed = !git(&[&status[..], &SOURCES[..]].concat())?.is_empty();
    Some(if changed { format!("{commit}-dirty") } else { commit })
}
