// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask dist`: lays out the contents of a package as they go to `/usr`.

mod completions;
mod date;
mod man;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vhost_device_balloon::program;

use crate::cargo::{release_daemon, root, target};

/// Files of this repository, with their folders in the package.
const FILES: [(&str, &str); 6] = [
    // Management software finds backends there (vhost-user.json of QEMU).
    ("packaging/50-vhost-device-balloon.json", "share/qemu/vhost-user"),
    ("packaging/openapi.json", "share/doc/vhost-device-balloon"),
    ("README.md", "share/doc/vhost-device-balloon"),
    ("CHANGELOG.md", "share/doc/vhost-device-balloon"),
    ("LICENSE-APACHE", "share/doc/vhost-device-balloon"),
    ("LICENSE-BSD-3-Clause", "share/doc/vhost-device-balloon"),
];

/// Builds the release of the daemon and writes the package into `target/dist`.
///
/// # Errors
/// If the daemon does not build or something cannot be written.
pub(crate) fn run() -> Result<()> {
    let daemon = release_daemon()?;
    let dist = target().join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("cannot empty {}", dist.display()))?;
    }
    put(&daemon, &dist.join("bin"))?;
    generate(&dist)?;
    println!("package: {} (copy its contents to /usr)", dist.display());
    Ok(())
}

/// Writes everything but the daemon: man pages and completions from its command line, and files.
fn generate(dist: &Path) -> Result<()> {
    let command = program::command();
    for script in completions::scripts(&command)? {
        write(&dist.join(script.path), &script.text)?;
    }
    let man = dist.join("share/man/man1");
    for page in man::pages(&command, &date::day()?)? {
        write(&man.join(page.file), &page.text)?;
    }
    for (file, folder) in FILES {
        put(&root().join(file), &dist.join(folder))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    path.parent().map_or(Ok(path), made)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn made(folder: &Path) -> Result<&Path> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn put(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().with_context(|| format!("{} has no name", file.display()))?;
    let to = made(folder)?.join(name);
    fs::copy(file, &to)
        .with_context(|| format!("cannot copy {} to {}", file.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "vhost-device-balloon";

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn package_holds_man_pages_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path()).unwrap();
        let at = |path: &str| dir.path().join(path);

        for page in ["", "-ctl", "-ctl-status", "-ctl-target"] {
            let page = read(&at(&format!("share/man/man1/{NAME}{page}.1")));
            assert!(page.contains(".SH NAME"), "{page}");
        }
        for path in [
            "share/bash-completion/completions/vhost-device-balloon.bash",
            "share/zsh/site-functions/_vhost-device-balloon",
            "share/fish/vendor_completions.d/vhost-device-balloon.fish",
        ] {
            assert!(read(&at(path)).contains("control-socket"), "{path}");
        }
        read(&at("share/doc/vhost-device-balloon/LICENSE-APACHE"));
    }

    /// Checks the descriptor against `VHostUserBackend` of QEMU's vhost-user.json.
    #[test]
    fn descriptor_names_the_installed_program() {
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path()).unwrap();
        let path = dir.path().join("share/qemu/vhost-user/50-vhost-device-balloon.json");
        let descriptor: serde_json::Value = serde_json::from_str(&read(&path)).unwrap();
        assert_eq!(descriptor["type"], "balloon");
        assert_eq!(descriptor["binary"], format!("/usr/bin/{NAME}"));
        assert!(descriptor["description"].is_string());
        let capabilities: serde_json::Value = serde_json::from_str(program::CAPABILITIES).unwrap();
        assert_eq!(capabilities["type"], descriptor["type"]);
    }
}
