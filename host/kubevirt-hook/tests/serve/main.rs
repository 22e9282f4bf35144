// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The hook as a process, with a client of gRPC in place of virt-launcher and real daemons.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

mod hook;
mod node;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use balloon_kubevirt_hook::domain;
use balloon_kubevirt_hook::options::Options;
use balloon_kubevirt_hook::protocol::{
    Empty, InfoResult, PreCloudInitIsoParams, PreCloudInitIsoResult, path,
};
use rustix::process::{Signal, kill_process};
use tonic::Code;

use crate::hook::{DOMAIN, HOOK, Hook, VMI, VMM_SOCKET, gone, parent, pid, program, wait};

#[test]
fn virt_launcher_gets_domain_daemon_and_an_end() {
    let mut hook = Hook::start();
    let info: InfoResult = hook.call(path::INFO, Empty {}).unwrap();
    let points: Vec<_> = info.hook_points.iter().map(|point| &*point.name).collect();
    assert_eq!(
        (&*info.name, &*points),
        ("vhost-device-balloon", &["OnDefineDomain", "Shutdown"][..])
    );
    assert_eq!(info.versions, ["v1alpha3"]);
    hook.status().unwrap_err();

    let xml = hook.define(DOMAIN, VMI).unwrap();
    let options = Options::read(VMI.as_bytes()).unwrap();
    assert_eq!(xml, domain::attach(DOMAIN.as_bytes(), VMM_SOCKET, &options).unwrap().xml);
    // The answer comes when the daemon serves.
    let status = hook.status().unwrap();
    assert_eq!(status["name"], "shop/vm1");
    assert!(hook.vmm_socket().exists());
    // virt-launcher takes all else for a hook's socket.
    let entries = fs::read_dir(hook.dir.path().join("sockets")).unwrap().map(Result::unwrap);
    let files: Vec<_> = entries.filter(|entry| !entry.file_type().unwrap().is_dir()).collect();
    assert_eq!(files.len(), 1, "{files:?}");

    // A domain that is defined again, and other options: the same daemon.
    let other = VMI.replace("statistics-interval\": \"0\"", "target\": \"64Mi\"");
    assert_eq!(hook.define(&xml, &other).unwrap(), xml);
    assert_eq!(hook.pid(), pid(&status));
    assert!(hook.log().contains("keeps its options"), "{}", hook.log());

    let _: Empty = hook.call(path::SHUTDOWN, Empty {}).unwrap();
    assert!(hook.ended().success());
    gone(pid(&status));
    assert!(!hook.socket().exists() && !hook.vmm_socket().exists());
}

#[test]
fn calls_that_cannot_work_start_no_daemon() {
    let hook = Hook::start();
    for (domain, vmi, code, expected) in [
        ("<domain", VMI, Code::InvalidArgument, "cannot read the domain XML"),
        (DOMAIN, "{}", Code::InvalidArgument, "cannot read the VirtualMachineInstance"),
    ] {
        let error = hook.define(domain, vmi).unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(expected), "{error}");
        assert!(hook.log().contains(expected), "{}", hook.log());
    }
    let not_asked = VMI.replace("statistics-interval\": \"0\"", "enabled\": \"false\"");
    assert_eq!(hook.define(DOMAIN, &not_asked).unwrap(), DOMAIN);
    let large = "a".repeat(5 << 20);
    assert_eq!(hook.define(&large, VMI).unwrap_err().code(), Code::OutOfRange);
    let unknown = hook.call::<Empty, Empty>("/kubevirt.hooks.v1alpha3.Callbacks/Other", Empty {});
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    let asked = PreCloudInitIsoParams {
        cloud_init_no_cloud_source: b"{}".to_vec(),
        vmi: VMI.into(),
        cloud_init_data: b"{\"a\": 1}".to_vec(),
    };
    let same: PreCloudInitIsoResult = hook.call(path::PRE_CLOUD_INIT_ISO, asked).unwrap();
    assert_eq!(same.cloud_init_data, b"{\"a\": 1}");
    // What speaks no HTTP/2 is hung up on, and the next is served.
    let mut garbage = UnixStream::connect(hook.socket()).unwrap();
    garbage.write_all(&[b'\n'; 4096]).unwrap();
    let _ = garbage.read_to_end(&mut Vec::new());
    let _: InfoResult = hook.call(path::INFO, Empty {}).unwrap();
    hook.status().unwrap_err();
}

#[test]
fn a_daemon_that_cannot_start_is_told() {
    let hook = Hook::start();
    // No daemon replaces a folder.
    fs::create_dir_all(hook.vmm_socket()).unwrap();
    let error = hook.define(DOMAIN, VMI).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("ended before it served"), "{error}");
    fs::remove_dir(hook.vmm_socket()).unwrap();
    hook.define(DOMAIN, VMI).unwrap();
}

#[test]
fn the_domain_waits_for_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // A daemon that starts when it is told to, and notes each answer of `ctl`.
    let script = "#!/bin/sh\nhere=$(dirname \"$0\")\nif [ \"$1\" != ctl ]; then read _ < \"$here/go\"; exec \"$here/daemon\" \"$@\"; fi\n\
                  \"$here/daemon\" \"$@\"; code=$?; echo $code >> \"$here/asked\"; exit $code\n";
    fs::write(at("slow"), script).unwrap();
    fs::set_permissions(at("slow"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink(program("vhost-device-balloon"), at("daemon")).unwrap();
    assert!(Command::new("mkfifo").arg(at("go")).status().unwrap().success());
    fs::create_dir(at("sockets")).unwrap();
    let hook = Hook::start_with(dir, "slow");
    std::thread::scope(|scope| {
        let defines = scope.spawn(|| hook.define(DOMAIN, VMI));
        let at = |name: &str| hook.dir.path().join(name);
        wait(|| fs::read(at("asked")).map_err(|error| error.to_string()));
        // It would have answered before these.
        for _ in 0..3 {
            let _: InfoResult = hook.call(path::INFO, Empty {}).unwrap();
        }
        assert!(!defines.is_finished(), "{}", hook.log());
        fs::write(at("go"), "\n").unwrap();
        defines.join().unwrap().unwrap();
        hook.status().unwrap();
    });
}

#[test]
fn killed_daemons_and_keepers_are_followed_by_others() {
    let mut hook = Hook::start();
    hook.define(DOMAIN, VMI).unwrap();
    let first = hook.pid();
    let keeper = parent(first).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    let second = hook.next_after(first);
    assert_eq!(parent(second), Some(keeper), "the keeper starts it");
    // Without its keeper a daemon serves on, and is the last.
    kill_process(keeper, Signal::KILL).unwrap();
    wait(|| match hook.log().contains("the keeper of the daemon ended by itself") {
        true => Ok(()),
        false => Err(hook.log()),
    });
    assert_eq!(hook.pid(), second);
    kill_process(second, Signal::KILL).unwrap();
    let third = hook.next_after(second);
    hook.signal(Signal::TERM);
    assert!(hook.ended().success());
    gone(third);
}

#[test]
fn sigterm_waits_until_the_vm_has_ended() {
    let mut hook = Hook::start();
    hook.define(DOMAIN, VMI).unwrap();
    let daemon = hook.pid();
    let mut vmm = UnixStream::connect(hook.vmm_socket()).unwrap();
    // GET_FEATURES: one that says nothing is no VMM yet.
    let words = [1_u32, 1, 0];
    vmm.write_all(&words.map(u32::to_le_bytes).concat()).unwrap();
    wait(|| match hook.status().unwrap()["connected"] == true {
        true => Ok(()),
        false => Err("not connected".to_owned()),
    });
    hook.signal(Signal::TERM);
    wait(|| match hook.log().contains("told to end, and the VM still runs") {
        true => Ok(()),
        false => Err(hook.log()),
    });
    assert_eq!(hook.pid(), daemon);
    let _: InfoResult = hook.call(path::INFO, Empty {}).unwrap();
    drop(vmm);
    assert!(hook.ended().success());
    gone(daemon);
}

#[test]
fn a_socket_of_a_killed_hook_is_replaced() {
    let mut hook = Hook::start();
    let mut second = Hook::command(hook.dir.path());
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another process listens there"));
    hook.signal(Signal::KILL);
    hook.ended();
    assert!(hook.socket().exists());
    hook.process = second.stderr(Stdio::null()).spawn().unwrap();
    wait(|| UnixStream::connect(hook.socket()).map_err(|error| error.to_string()));
    let _: InfoResult = hook.call(path::INFO, Empty {}).unwrap();
    hook.signal(Signal::TERM);
    assert!(hook.ended().success());
}

#[test]
fn health_says_hook_daemon_and_driver() {
    let mut hook = Hook::start();
    let health = || Hook::command(hook.dir.path()).arg("health").output().unwrap();
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said(&health()).contains("not started, no VM was defined yet"));
    hook.define(DOMAIN, VMI).unwrap();
    let healthy = health();
    assert!(healthy.status.success());
    assert!(said(&healthy).contains("serves v1alpha3"), "{healthy:?}");
    assert!(said(&healthy).contains("no VMM is connected"), "{healthy:?}");
    hook.signal(Signal::TERM);
    hook.ended();
    let output = Hook::command(hook.dir.path()).arg("health").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no hook serves"), "{output:?}");
}

#[test]
fn command_line_of_the_shim_prints_the_domain() {
    let dir = tempfile::tempdir().unwrap();
    let shim = dir.path().join("onDefineDomain");
    symlink(HOOK, &shim).unwrap();
    let run = |program: &Path, first: &[&str], vmi: &str| {
        let mut command = Command::new(program);
        command.args(first).args(["--vmi", vmi, "--domain", DOMAIN]);
        command.env("CONTAINER_NAME", "hook-sidecar-1").output().unwrap()
    };
    let socket = "/var/run/kubevirt-hooks/hook-sidecar-1/balloon/vm.sock";
    let options = Options::read(VMI.as_bytes()).unwrap();
    let expected = domain::attach(DOMAIN.as_bytes(), socket, &options).unwrap().xml;
    for (program, first) in [(&*shim, &[][..]), (Path::new(HOOK), &["onDefineDomain"][..])] {
        let output = run(program, first, VMI);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), expected.trim_end());
        let output = run(program, first, "{}");
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("cannot read the VirtualMachineInstance"), "{said}");
    }
}
