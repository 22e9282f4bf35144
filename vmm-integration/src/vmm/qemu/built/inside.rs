// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs programs of the Debian that compiles, with the folder of the build as its `/mnt`.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};

use crate::fetch::apt::run_with_lines;
use crate::fetch::{SetupEvent, Sysroot};

/// Mounts end with the process. Killing `unshare` ends all that was started.
const ENTER: &str = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && \
                     mount --bind \"$1\" \"$0/mnt\" && cd \"$0\" && shift && \
                     exec chroot . sh -c 'cd \"/mnt/$0\" && exec \"$@\"' \"$@\"";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of what a program prints goes into an error.
const TAIL_LINES: usize = 20;

pub(super) struct Inside {
    root: PathBuf,
    folder: PathBuf,
}

impl Inside {
    pub(super) fn new(root: &Sysroot, folder: &Path) -> Result<Self> {
        let root = root.folder();
        let root = fs::canonicalize(root).with_context(|| format!("finding {}", root.display()))?;
        Ok(Self { root, folder: folder.to_owned() })
    }

    /// Runs a program in a folder of the build's, and hands over each line that it prints.
    ///
    /// # Errors
    /// When it fails, with the end of what it has printed.
    pub(super) fn run(
        &self,
        within: &str,
        program: &str,
        args: &[&str],
        each: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER]);
        command.arg(&self.root).arg(&self.folder).args([within, program]).args(args);
        command.env_clear().env("PATH", PATH).env("HOME", "/root");
        run_with_tail(&mut command, each)
    }

    /// Compiles what is configured in `build`.
    pub(super) fn compile(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<()> {
        let jobs = thread::available_parallelism().map_or(1, usize::from).to_string();
        self.run("build", "ninja", &["-j", &jobs, "qemu-system-x86_64"], &mut |line| {
            if let Some((done, about)) = steps(line) {
                events(SetupEvent::Compile { done, about });
            }
        })
        .context("compiling QEMU")
    }
}

/// Runs a program that prints its errors among all else.
fn run_with_tail(command: &mut Command, each: &mut dyn FnMut(&str)) -> Result<()> {
    let mut tail = VecDeque::new();
    let done = run_with_lines(command, &mut |line| {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
        each(line);
    });
    done.with_context(|| tail.make_contiguous().join("\n"))
}

/// Of ninja's "[done/all] step".
fn steps(line: &str) -> Option<(usize, usize)> {
    let (done, all) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.parse().ok()?, all.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_ninja_are_read() {
        assert_eq!(steps("[535/1686] Compiling C object x.c.o"), Some((535, 1686)));
        assert_eq!(steps("ninja: no work to do."), None);
    }

    #[test]
    fn an_error_shows_the_end_of_the_output() {
        let script = "seq 100; echo 'x.c: No space left on device'; exit 1";
        let error = run_with_tail(Command::new("sh").args(["-c", script]), &mut |_| {});
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("\n100\nx.c: No space left on device"), "{error}");
        assert!(!error.contains("\n80\n"), "{error}");
    }
}
