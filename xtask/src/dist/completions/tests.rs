// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scripts in the shells that they are for.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vhost_device_balloon::program;

use super::scripts;

const NAME: &str = "vhost-device-balloon";

/// The scripts in a folder as in `/usr`, and a socket and a file beside them.
struct Installed(TempDir);

impl Installed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for script in scripts(&program::command()).unwrap() {
            let path = dir.path().join(script.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, script.text).unwrap();
        }
        drop(UnixListener::bind(dir.path().join("vm.ctl")).unwrap());
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a shell in the folder. It prints one completion a line.
    fn completions(&self, shell: &mut Command) -> Vec<String> {
        let output = shell.current_dir(self.0.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.is_empty(), "{errors}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// What any shell completes: the words, of which the last one is not whole, and all completions of it.
const EXPECTED: &[(&[&str], &[&str])] = &[
    (&["--socket-p"], &["--socket-path"]),
    (&["ct"], &["ctl"]),
    (&["ctl", "reset"], &["reset-counters"]),
    (&["--socket-path", "s", "--log-level", "de"], &["debug"]),
    (&["--log-level", ""], &["debug", "error", "info", "off", "warn"]),
    (&["--socket-path", "vm."], &["vm.ctl"]),
    (&["--control-socket", "vm."], &["vm.ctl"]),
    (&["ctl", "--control-socket", "vm."], &["vm.ctl"]),
    (&["ctl", "--control-socket", "vm.ctl", "hinting", "sta"], &["start"]),
    (&["ctl", "--control-socket", "vm.ctl", "log-level", "w"], &["warn"]),
    (&["ctl", "--control-socket", "vm.ctl", "target", "--lea"], &["--lease", "--leave"]),
    // Neither a size nor an address is a file.
    (&["--target", "vm"], &[]),
    (&["--metrics-address", "vm"], &[]),
    (&["ctl", "--timeout", "vm"], &[]),
];

fn check(mut completed: impl FnMut(&[&str]) -> Vec<String>) {
    let mut wrong = Vec::new();
    for (words, expected) in EXPECTED {
        let mut found = completed(words);
        // bash keeps what it cannot complete.
        found.retain(|word| !expected.is_empty() || word != words[words.len() - 1]);
        found.sort();
        if found != *expected {
            wrong.push((words, found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Calls the completion function as bash does for the tab key.
#[test]
fn bash_completes_commands_options_and_values() {
    let installed = Installed::new();
    let script = r#"
        source "$1"
        shift
        compopt() { :; }
        complete=$(complete -p "$1")
        function=${complete##*-F }
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "${function%% *}" "$1" "${@: -1}" "${@: -2:1}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let path = installed.path("share/bash-completion/completions/vhost-device-balloon.bash");
    check(|words| {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).arg(&path).arg(NAME).args(words);
        installed.completions(&mut bash)
    });
}

/// Asks the shell itself.
#[test]
#[ignore = "needs fish: cargo xtask test"]
fn fish_completes_commands_options_and_values() {
    let installed = Installed::new();
    let path = installed.path("share/fish/vendor_completions.d/vhost-device-balloon.fish");
    check(|words| {
        let mut fish = Command::new("fish");
        let line = [&[NAME], words].concat().join(" ");
        let ask = format!("source {}; complete -C '{line}'", path.display());
        fish.env("HOME", installed.0.path()).args(["--no-config", "-c", &ask]);
        let lines = installed.completions(&mut fish);
        lines.iter().filter_map(|line| line.split('\t').next()).map(str::to_owned).collect()
    });
}

/// Types the line into a shell in a terminal of its own, and prints what it would offer.
const ZSH: &str = r#"
    zmodload zsh/zpty
    zpty shell zsh -f -i
    zpty -w shell 'PS1= PS2= RPS1='
    zpty -w shell "fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -d $2/.zcompdump"
    zpty -w shell 'compadd () {
        if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
        local -a hits; builtin compadd -A hits "$@"; print -rl -- "<"$^hits">"
    }'
    zpty -w shell 'finish () { print -r -- "<END>"; exit }
        zle -N finish; bindkey "^X" finish
        zle -C offer complete-word _main_complete; bindkey "^I" offer
        setopt no_list_beep; print -r -- "<"READY">"'
    while zpty -r shell line && [[ $line != *'<READY>'* ]]; do :; done
    zpty -n -w shell "$3"$'\t\x18'
    while zpty -r shell line && [[ $line != *'<END>'* ]]; do print -r -- $line; done
"#;

#[test]
#[ignore = "needs zsh: cargo xtask test"]
fn zsh_completes_commands_options_and_values() {
    let installed = Installed::new();
    let functions = installed.path("share/zsh/site-functions");
    check(|words| {
        let line = [&[NAME], words].concat().join(" ");
        let mut zsh = Command::new("zsh");
        zsh.args(["-f", "-c", ZSH, "zsh"]).args([&functions as &Path, installed.0.path()]);
        let lines = installed.completions(zsh.arg(line));
        // The shell shows what it was typed in front of the first one.
        let offered = lines.iter().filter_map(|line| line.strip_suffix('>')?.rsplit_once('<'));
        offered.map(|(_, word)| word.to_owned()).collect()
    });
}
