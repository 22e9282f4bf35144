// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The DaemonSet's hostd, over the folders that a kubelet makes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

use balloon_kubevirt_hook::protocol::{Empty, path};
use rustix::process::{Pid, Signal, kill_process};

use crate::hook::{DOMAIN, Hook, VMI, program, wait};

fn scrape(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// A process that a test does not leave.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The daemon of a VM, where the kubelet has the volume of its pod.
fn pod(node: &Path, uid: &str, name: &str) -> Hook {
    let volume = node.join("pods").join(uid);
    let volume = volume.join("volumes/kubernetes.io~empty-dir/hook-sidecar-sockets/hook-sidecar-0");
    fs::create_dir_all(&volume).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // As the container has it: a path that a socket can have.
    symlink(volume, dir.path().join("sockets")).unwrap();
    let hook = Hook::start_in(dir);
    hook.define(DOMAIN, &VMI.replace("vm1", name)).unwrap();
    hook
}

#[test]
#[ignore = "needs a full run: cargo xtask test --full"]
fn hostd_of_the_daemonset_finds_the_vms_of_its_node() {
    let node = tempfile::tempdir().unwrap();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/kubernetes");
    for name in ["pods", "run", "etc"] {
        fs::create_dir(node.path().join(name)).unwrap();
    }
    fs::copy(manifests.join("policy.toml"), node.path().join("etc/policy.toml")).unwrap();
    let manifest = fs::read_to_string(manifests.join("hostd.yaml")).unwrap();
    let lines = manifest.lines().skip_while(|line| line.trim() != "- hostd");
    let arguments: Vec<String> =
        lines.map_while(|line| line.trim().strip_prefix("- ").map(str::to_owned)).collect();
    let here = |argument: &String| {
        let at = |name: &str| node.path().join(name).to_string_lossy().into_owned();
        let argument = argument.replace("/var/lib/kubelet/pods", &at("pods"));
        let argument = argument.replace("/etc/vhost-device-balloon", &at("etc"));
        argument.replace("/run/vhost-device-balloon", &at("run")).replace(":9143", ":0")
    };
    let hostd = program("vhost-device-balloon-host");
    let serving = Command::new(hostd).args(arguments.iter().map(here)).spawn().unwrap();
    let mut serving = Ended(serving);
    // A scrape asks each daemon.
    let vms = || {
        let page =
            scrape(&node.path().join("run/hostd.sock")).map_err(|error| error.to_string())?;
        let up = page.lines().filter_map(|line| line.strip_prefix("balloon_host_daemon_up{vm=\""));
        let up = up.filter_map(|rest| rest.strip_suffix("\"} 1").map(str::to_owned));
        Ok::<Vec<_>, String>(up.collect())
    };
    let expect = |names: &[&str]| {
        wait(|| match vms()? {
            found if found == names => Ok(()),
            found => Err(format!("{found:?}")),
        });
    };
    expect(&[]);
    let first = pod(node.path(), "8c5e2b0a-5f0e-4f7c-9a43-3f6f0d1f8f01", "vm1");
    expect(&["shop/vm1"]);
    let second = pod(node.path(), "8c5e2b0a-5f0e-4f7c-9a43-3f6f0d1f8f02", "vm2");
    expect(&["shop/vm1", "shop/vm2"]);
    let _: Empty = first.call(path::SHUTDOWN, Empty {}).unwrap();
    expect(&["shop/vm2"]);
    drop(second);
    kill_process(Pid::from_child(&serving.0), Signal::TERM).unwrap();
    assert!(serving.0.wait().unwrap().success());
}
