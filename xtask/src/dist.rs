// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask dist`: lays out the contents of a package as they go to `/usr`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_complete::{Generator, Shell};
use vhost_device_balloon::program;

use crate::cargo::{release_daemon, root, target};

const NAME: &str = "vhost-device-balloon";

/// The folder in which each shell finds completion scripts.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions"),
    (Shell::Zsh, "share/zsh/site-functions"),
    (Shell::Fish, "share/fish/vendor_completions.d"),
];

/// Files of this repository, with their folders in the package.
const FILES: [(&str, &str); 5] = [
    // Management software finds backends there (vhost-user.json of QEMU).
    ("packaging/50-vhost-device-balloon.json", "share/qemu/vhost-user"),
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
    let mut command = program::command();
    for (shell, folder) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, NAME, &mut script);
        let folder = dist.join(folder);
        let path = made(&folder)?.join(shell.file_name(NAME));
        fs::write(&path, repaired(String::from_utf8(script)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let man = dist.join("share/man/man1");
    clap_mangen::generate_to(command, made(&man)?).context("cannot write man pages")?;
    for (file, folder) in FILES {
        put(&root().join(file), &dist.join(folder))?;
    }
    Ok(())
}

/// Repairs a script for bash: clap_complete 4.6 writes the hyphens of the program's name in two ways,
/// so that the script never recognizes subcommands (clap issue 6421).
fn repaired(script: String) -> String {
    script.replace(&NAME.replace('-', "__subcmd__"), &NAME.replace('-', "__"))
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
    use std::process::Command;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn package_holds_man_pages_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path()).unwrap();
        let at = |path: &str| dir.path().join(path);

        let man = read(&at("share/man/man1/vhost-device-balloon.1"));
        assert!(man.contains(".TH vhost-device-balloon 1"), "{man}");
        let plain = man.replace('\\', "");
        for argument in program::command().get_arguments() {
            let long = format!("--{}", argument.get_long().unwrap());
            assert!(plain.contains(&long), "{long} is not in the man page");
        }
        for page in ["ctl", "ctl-status", "ctl-target"] {
            let page = read(&at(&format!("share/man/man1/vhost-device-balloon-{page}.1")));
            assert!(page.contains(".SH NAME"), "{page}");
        }
        for path in [
            "share/zsh/site-functions/_vhost-device-balloon",
            "share/fish/vendor_completions.d/vhost-device-balloon.fish",
        ] {
            assert!(read(&at(path)).contains("control-socket"), "{path}");
        }
        read(&at("share/doc/vhost-device-balloon/LICENSE-APACHE"));
    }

    /// Runs the completion function as bash does for the tab key.
    #[test]
    fn bash_completes_options_and_commands() {
        let dir = tempfile::tempdir().unwrap();
        generate(dir.path()).unwrap();
        let completed = |words: &[&str]| -> Vec<String> {
            let script = r#"
                source "$1/share/bash-completion/completions/vhost-device-balloon.bash"
                shift
                complete=$(complete -p "$1")
                function=${complete##*-F }
                COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
                "${function%% *}" "$1" "${@: -1}" "${@: -2:1}"
                printf '%s\n' "${COMPREPLY[@]}"
            "#;
            let mut bash = Command::new("bash");
            bash.args(["-c", script, "bash"]).arg(dir.path()).arg(NAME).args(words);
            let output = bash.output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.is_empty(), "{errors}");
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(str::to_owned).collect()
        };
        assert_eq!(completed(&["--socket-p"]), ["--socket-path"]);
        assert_eq!(completed(&["ctl", "reset"]), ["reset-counters"]);
        assert_eq!(completed(&["--socket-path", "s", "--log-level", "de"]), ["debug"]);
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
