// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Installs packages into empty folders, tries what they hold, and removes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::about::{NAME, Part, VERSION};

/// A daemon that runs. Killed when dropped.
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// If it ends instead.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stderr(Stdio::piped()).spawn().context("cannot start the daemon")?;
        let log = BufReader::new(child.stderr.take().context("the daemon has no log")?);
        let daemon = Self { child };
        let mut said = Vec::new();
        for line in log.lines() {
            let line = line?;
            let listens = line.contains("listening on");
            said.push(line);
            if listens {
                return Ok(daemon);
            }
        }
        bail!("the daemon does not listen: {said:#?}");
    }

    /// Asks it for its status.
    ///
    /// # Errors
    /// If it does not answer.
    pub(super) fn answers(&self, client: &Path, control: &Path) -> Result<()> {
        let mut ctl = Command::new(client);
        ctl.args(["ctl", "--json", "--control-socket"]).arg(control).arg("status");
        let output = ctl.output().context("cannot start ctl")?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("no status: {output:?}"))?;
        ensure!(status["version"] == VERSION, "unexpected: {status}");
        Ok(())
    }

    /// Ends it as a service manager does.
    ///
    /// # Errors
    /// If it does not end well.
    pub(super) fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status} ({:?})", status.signal());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Tries a `.deb`.
///
/// # Errors
/// If something is wrong with it.
pub(super) fn deb(package: &Path) -> Result<()> {
    if !is_root() || !is_here("dpkg") {
        println!("{}: not installed: this needs root and dpkg", package.display());
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let at = |path: &str| root.path().join(path);
    fs::create_dir_all(at("var/lib/dpkg/info"))?;
    fs::create_dir_all(at("var/lib/dpkg/updates"))?;
    fs::write(at("var/lib/dpkg/status"), "")?;
    accounts(root.path())?;
    let before = files(root.path())?;
    let dpkg = |args: &[&str]| -> Result<()> {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", root.path().display()));
        // There is neither a shell in the folder nor a C library.
        dpkg.args(["--force-script-chrootless", "--force-depends", "--no-triggers"]);
        done(dpkg.args(args)).map(drop)
    };
    dpkg(&["--install", &package.display().to_string()])?;
    contents(root.path())?;
    dpkg(&["--verify", NAME])?;
    let others = fs::read_to_string(at("etc/passwd"))?;
    if is_here("systemd-sysusers") {
        ensure!(others.contains("\nvhost-balloon:"), "no user: {others}");
    }
    let options = at("etc/vhost-device-balloon/vm.conf");
    fs::write(&options, "BALLOON_OPTIONS=--statistics\n")?;
    dpkg(&["--remove", NAME])?;
    ensure!(options.exists(), "the operator's options are gone");
    dpkg(&["--purge", NAME])?;
    left(&before, &files(root.path())?)?;
    println!("{}: installed, tried and purged", package.display());
    Ok(())
}

/// Tries a `.rpm`.
///
/// # Errors
/// If something is wrong with it.
#[cfg_attr(not(feature = "packages"), allow(dead_code, reason = "the other build writes one"))]
pub(super) fn rpm(package: &Path) -> Result<()> {
    if !is_root() || !is_here("rpm") {
        println!("{}: not installed: this needs root and rpm", package.display());
        return Ok(());
    }
    done(Command::new("rpm").args(["--checksig", "--nosignature"]).arg(package))?;
    let root = tempfile::tempdir()?;
    accounts(root.path())?;
    let before = files(root.path())?;
    let rpm = |args: &[&str]| -> Result<String> {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(root.path()).arg("--dbpath=/var/lib/rpm").args(args);
        done(&mut rpm)
    };
    rpm(&["--initdb"])?;
    // There is neither a shell in the folder nor a C library.
    rpm(&["--install", "--nodeps", "--noscripts", &package.display().to_string()])?;
    contents(root.path())?;
    rpm(&["--verify", "--nodeps", "--noscripts", NAME])?;
    rpm(&["--erase", "--noscripts", NAME])?;
    let mut after = files(root.path())?;
    // Folders that are not its own belong to other packages, which are not here.
    let is_own = |path: &Path| path.to_string_lossy().contains(NAME);
    after.retain(|path, _| {
        before.contains_key(path) || is_own(path) || !root.path().join(path).is_dir()
    });
    left(&before, &after)?;
    println!("{}: installed, tried and erased", package.display());
    Ok(())
}

/// Tries what is installed below `root`.
fn contents(root: &Path) -> Result<()> {
    let daemon = root.join("usr/bin").join(NAME);
    let version = done(Command::new(&daemon).arg("--version"))?;
    ensure!(version == format!("{NAME} {VERSION}\n"), "unexpected: {version}");
    let host = root.join("usr/bin").join(Part::Host.name());
    let version = done(Command::new(&host).arg("--version"))?;
    ensure!(version == format!("{} {VERSION}\n", Part::Host.name()), "unexpected: {version}");
    // The daemon's program finds it beside itself.
    let help = done(Command::new(&daemon).args(["hostd", "--help"]))?;
    ensure!(help.contains("--policy"), "unexpected: {help}");
    let sockets = tempfile::tempdir()?;
    let control = sockets.path().join("control");
    let mut command = Command::new(&daemon);
    command.arg("--socket-path").arg(sockets.path().join("frontend"));
    let running = Daemon::start(command.arg("--control-socket").arg(&control))?;
    running.answers(&daemon, &control)?;
    running.end()?;

    if is_here("man") {
        let mut man = Command::new("man");
        man.arg("--manpath").arg(root.join("usr/share/man"));
        let page = done(man.args(["vhost-device-balloon-ctl"]).env("MANPAGER", "cat"))?;
        ensure!(page.contains("SYNOPSIS"), "no manual: {page}");
    }
    if is_here("systemd-analyze") {
        units(root)?;
    }
    if is_here("systemd-sysusers") && is_here("systemd-tmpfiles") {
        let of = format!("--root={}", root.display());
        done(Command::new("systemd-sysusers").arg(&of).arg(format!("{NAME}.conf")))?;
        done(Command::new("systemd-tmpfiles").args([&of, "--create"]).arg(format!("{NAME}.conf")))?;
        ensure!(root.join("run").join(NAME).is_dir(), "no folder for sockets");
        fs::remove_dir(root.join("run").join(NAME))?;
    }
    Ok(())
}

/// Asks systemd what it thinks of the units below `root`.
fn units(root: &Path) -> Result<()> {
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg(format!("--root={}", root.display()));
    // What else a machine has is not in the folder.
    verify.args(["--recursive-errors=no", "--man=no"]);
    let units = ["@vm.service", "@vm.socket", "-control@vm.socket", "-hostd.service"];
    let output = verify.args(units.map(|unit| format!("{NAME}{unit}"))).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.trim().is_empty(), "{verify:?}: {said}");
    Ok(())
}

/// The files of accounts that every system has.
fn accounts(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    fs::create_dir_all(&etc)?;
    fs::create_dir_all(root.join("run"))?;
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("shadow", "root:*:20000:0:99999:7:::\n"),
        ("gshadow", "root:*::\n"),
    ] {
        fs::write(etc.join(name), text)?;
        // What tools leave behind that add an account.
        fs::write(etc.join(format!("{name}-")), text)?;
    }
    fs::write(etc.join(".pwd.lock"), "")?;
    Ok(())
}

/// All files and folders below `root`, with sizes of files, but those of package managers.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut next = vec![root.to_owned()];
    while let Some(folder) = next.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let data = path.symlink_metadata()?;
            let within = path.strip_prefix(root)?.to_owned();
            if ["var/lib/dpkg", "var/lib/rpm"].iter().any(|own| within == Path::new(own)) {
                continue;
            }
            if data.is_dir() {
                next.push(path);
            }
            // Accounts stay, so that their numbers are given to no other.
            let is_account = within.parent() == Some(Path::new("etc"));
            found.insert(within, if data.is_dir() || is_account { 0 } else { data.len() });
        }
    }
    Ok(found)
}

fn left(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) -> Result<()> {
    let left: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    let gone: Vec<_> = before.keys().filter(|path| !after.contains_key(*path)).collect();
    ensure!(left.is_empty() && gone.is_empty(), "left behind: {left:?}, lost: {gone:?}");
    Ok(())
}

/// Runs `command` to its end; returns what it printed.
fn done(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{said}{errors}", output.status);
    Ok(said.into_owned())
}

/// Whether the shell would find `program`.
fn is_here(program: &str) -> bool {
    let mut which = Command::new("sh");
    which.args(["-c", "command -v \"$1\"", "sh", program]).stdout(Stdio::null());
    which.status().is_ok_and(|status| status.success())
}
