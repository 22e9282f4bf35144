// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What tests need of the machine, and which tests need what.
//!
//! A test that needs something is `#[ignore = "needs NAME and NAME: cargo xtask test"]`.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use vmm_integration::debian::DebianMachine;
use vmm_integration::fetch::SetupEvent;
use vmm_integration::fetch::browser::Browser;
use vmm_integration::fetch::prometheus::Prometheus;
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::cgroup::MemoryLimit;
use vmm_integration::measure::hugetlb::Pool;
use vmm_integration::vmm::Vmm as _;
use vmm_integration::vmm::alioth;
use vmm_integration::vmm::cloud_hypervisor::CloudHypervisor;
use vmm_integration::vmm::qemu;
use vmm_integration::vmm::user_mode_linux::Uml;

use crate::{files, setup};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Names capabilities, separated by commas, whose absence does not fail a run with `CI` set.
pub(crate) const WITHOUT: &str = "CI_WITHOUT";

/// What a test needs that takes long and seldom fails.
pub(crate) const FULL_RUN: &str = "a full run";

/// Something of the machine, and how to find out whether it is there, for which it may be fetched.
pub(crate) struct Capability {
    pub(crate) name: &'static str,
    pub(crate) probe: fn() -> Result<()>,
}

/// All capabilities.
pub(crate) const ALL: [Capability; 26] = [
    Capability { name: "a Linux guest", probe: || setup::guest().map(drop) },
    Capability { name: "user-mode Linux", probe: || Uml.prepare(&mut |_| ()).map(drop) },
    Capability { name: "a bare guest on KVM", probe: alioth::kvm_runs_bare_guests },
    Capability {
        name: "cloud-hypervisor",
        probe: || CloudHypervisor.prepare(&mut |_| ()).map(drop),
    },
    Capability { name: "a QEMU of our own", probe: || qemu::built::existing().map(drop) },
    Capability { name: "a debug kernel", probe: || qemu::debug_kernel().map(drop) },
    Capability { name: "a browser", probe: || Browser::ensure().map(drop) },
    Capability { name: "root", probe: root },
    Capability { name: "FUSE", probe: || read_write("/dev/fuse") },
    Capability { name: "a memory limit", probe: || MemoryLimit::new(MIB).map(drop) },
    Capability { name: "core dumps", probe: core_dumps },
    Capability { name: "5 GiB of memory", probe: memory },
    Capability { name: "huge pages", probe: || Pool::with_free(2 * MIB, 512 * MIB).map(drop) },
    Capability { name: "huge pages of 1 GiB", probe: || Pool::with_free(GIB, 5 * GIB).map(drop) },
    Capability { name: "transparent huge pages", probe: transparent_pages },
    Capability {
        name: "a systemd of its own",
        probe: || succeeds("/lib/systemd/systemd", &["--version"]),
    },
    Capability { name: "groff", probe: || succeeds("groff", &["--version"]) },
    Capability { name: "zsh", probe: || found("zsh") },
    Capability { name: "fish", probe: || found("fish") },
    Capability { name: "mandoc", probe: || found("mandoc") },
    Capability { name: "systemd", probe: systemd },
    Capability { name: "a Debian machine", probe: || DebianMachine::boot().map(drop) },
    Capability { name: "promtool", probe: || Prometheus::ensure(&mut tell).map(drop) },
    Capability { name: "npm", probe: || succeeds("npm", &["--version"]) },
    Capability { name: "pip", probe: || succeeds("python3", &["-m", "pip", "--version"]) },
    Capability { name: FULL_RUN, probe: || Ok(()) },
];

/// A test with an `#[ignore]`, and the names of what it needs.
#[derive(Debug, PartialEq)]
pub(crate) struct IgnoredTest {
    pub(crate) name: String,
    pub(crate) needs: Vec<String>,
}

/// The ignored tests of the workspace.
///
/// # Errors
/// If a source cannot be read, or a reason does not name capabilities.
pub(crate) fn ignored_tests() -> Result<Vec<IgnoredTest>> {
    let mut tests = Vec::new();
    for path in files::with_extension("rs")? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        tests.extend(ignored_in(&text).with_context(|| path.display().to_string())?);
    }
    Ok(tests)
}

fn ignored_in(source: &str) -> Result<Vec<IgnoredTest>> {
    let mut tests = Vec::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(ignore) = line.strip_prefix("#[ignore") else { continue };
        let reason = ignore.strip_prefix(" = \"needs ").and_then(|rest| rest.split_once(": "));
        let (names, _) = reason.with_context(|| format!("{line}: names no capability"))?;
        let needs: Vec<_> = names.split(" and ").map(str::to_owned).collect();
        for need in &needs {
            ensure!(ALL.iter().any(|known| known.name == need), "{line}: no capability `{need}`");
        }
        let name = lines.find_map(|line| line.strip_prefix("fn ")?.split_once('('));
        let (name, _) = name.with_context(|| format!("{line}: no test below"))?;
        tests.push(IgnoredTest { name: name.to_owned(), needs });
    }
    Ok(tests)
}

/// Root, and allowed to mount.
fn root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this user is not root");
    succeeds("unshare", &["--mount", "sh", "-c", "mount -t tmpfs none /proc"])
}

fn tell(event: SetupEvent) {
    if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
        eprintln!("{text}");
    }
}

fn read_write(path: &str) -> Result<()> {
    File::options().read(true).write(true).open(path).map(drop).with_context(|| path.to_owned())
}

fn core_dumps() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = "ulimit -c unlimited && kill -ABRT $$";
    let status = Command::new("sh").args(["-c", script]).current_dir(folder.path()).status()?;
    ensure!(status.core_dumped(), "a shell that aborts leaves no core dump");
    Ok(())
}

fn memory() -> Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line.unwrap_or_default().trim().trim_end_matches(" kB").parse()?;
    ensure!(kib << 10 >= 5 * GIB, "{kib} KiB are available");
    Ok(())
}

/// Its tools, not its process: a container has none.
fn systemd() -> Result<()> {
    succeeds("systemd-analyze", &["--version"])?;
    succeeds("systemd-socket-activate", &["--version"])
}

fn transparent_pages() -> Result<()> {
    Ram::new(&RamLayout::flat(4 * MIB, Backing::Transparent)).map(drop)
}

fn succeeds(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    let status = command.args(args).stdout(Stdio::null()).status().context(program.to_owned())?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// For a program that does not say its version.
fn found(program: &str) -> Result<()> {
    succeeds("sh", &["-c", &format!("command -v {program}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_tests_are_found_with_what_they_need() {
        let source = "#[test]\n#[ignore = \"needs root and FUSE: x\"]\nfn one() {}\n\n\
                      #[test]\nfn two() {}\n    #[ignore = \"needs root: x\"]\n    fn three() {}";
        let test = |name: &str, needs: &[&str]| IgnoredTest {
            name: name.to_owned(),
            needs: needs.iter().copied().map(str::to_owned).collect(),
        };
        let found = ignored_in(source).expect("all are known");
        assert_eq!(found, [test("one", &["root", "FUSE"]), test("three", &["root"])]);
    }

    #[test]
    fn reasons_that_name_no_capability_are_refused() {
        for ignore in ["#[ignore]", "#[ignore = \"slow\"]", "#[ignore = \"needs a pony: x\"]"] {
            assert!(ignored_in(&format!("{ignore}\nfn one() {{}}")).is_err(), "{ignore}");
        }
    }
}
