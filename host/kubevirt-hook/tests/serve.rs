// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The hook as a process, with a client of gRPC in place of virt-launcher and real daemons.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use balloon_kubevirt_hook::domain;
use balloon_kubevirt_hook::options::Options;
use balloon_kubevirt_hook::protocol::{
    Client, Empty, InfoResult, OnDefineDomainParams, OnDefineDomainResult, PreCloudInitIsoParams,
    PreCloudInitIsoResult, path,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Status};
use vmm_integration::control::ControlSocket;
use vmm_integration::measure::host::wait_until;

const HOOK: &str = env!("CARGO_BIN_EXE_balloon-kubevirt-hook");
const DOMAIN: &str = include_str!("data/domain.xml");
const VMI: &str = include_str!("data/vmi.json");
const VMM_SOCKET: &str = "/launcher/hook-sidecar-0/balloon/vm.sock";
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A program of this workspace, which cargo has beside the hook's when it tests all.
fn program(name: &str) -> PathBuf {
    let program = Path::new(HOOK).with_file_name(name);
    if !program.exists() {
        let build = ["build", "--quiet", "--package", name, "--bin", name];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    program
}

fn wait<T>(condition: impl FnMut() -> Result<T, String>) -> T {
    wait_until(PATIENCE, LOOK_EVERY, condition).unwrap()
}

/// A hook that serves in a folder of its own.
struct Hook {
    process: Child,
    dir: TempDir,
    log: PathBuf,
}

impl Hook {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sockets")).unwrap();
        Self::start_in(dir)
    }

    /// In a folder with one for the sockets.
    fn start_in(dir: TempDir) -> Self {
        let log = dir.path().join("log");
        let mut command = Self::command(dir.path());
        command
            .env("CONTAINER_NAME", "not-used")
            .args(["--vmm-directory", "/launcher/hook-sidecar-0"]);
        let process = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let hook = Self { process, dir, log };
        wait(|| {
            UnixStream::connect(hook.socket()).map_err(|error| format!("{error}: {}", hook.log()))
        });
        hook
    }

    fn command(dir: &Path) -> Command {
        let mut command = Command::new(HOOK);
        command.arg("--directory").arg(dir.join("sockets")).arg("--daemon");
        command.arg(program("vhost-device-balloon"));
        command.stdin(Stdio::null());
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sockets/vhost-device-balloon.sock")
    }

    fn vmm_socket(&self) -> PathBuf {
        self.dir.path().join("sockets/balloon/vm.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn call<A, B>(&self, at: &'static str, parameters: A) -> Result<B, Status>
    where
        A: prost::Message + 'static,
        B: prost::Message + Default + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::connect(&self.socket()).await.unwrap();
            client.call(at, parameters).await
        })
    }

    fn define(&self, domain: &str, vmi: &str) -> Result<String, Status> {
        let asked = OnDefineDomainParams { domain_xml: domain.into(), vmi: vmi.into() };
        let done: OnDefineDomainResult = self.call(path::ON_DEFINE_DOMAIN, asked)?;
        Ok(String::from_utf8(done.domain_xml).unwrap())
    }

    fn status(&self) -> anyhow::Result<Value> {
        let socket = self.dir.path().join("sockets/balloon/vm.ctl");
        ControlSocket::new(&socket, PATIENCE).get("/v1/status")
    }

    fn pid(&self) -> Pid {
        pid(&self.status().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        wait(|| self.process.try_wait().unwrap().ok_or_else(|| "the hook runs".to_owned()))
    }

    /// The daemon that answers after another one has ended.
    fn next_after(&self, before: Pid) -> Pid {
        wait(|| match self.status().map(|status| pid(&status)) {
            Ok(next) if next != before => Ok(next),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // A test that failed may have left all three.
        let daemon = self.status().ok().map(|status| pid(&status));
        let keeper = daemon.and_then(parent).filter(|keeper| keeper.as_raw_nonzero().get() > 1);
        let own = Pid::from_child(&self.process);
        let all = [self.process.try_wait().unwrap().is_none().then_some(own), keeper, daemon];
        for pid in all.into_iter().flatten() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

fn pid(status: &Value) -> Pid {
    Pid::from_raw(i32::try_from(status["pid"].as_u64().unwrap()).unwrap()).unwrap()
}

/// The daemon's keeper.
fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(line.trim().parse().ok()?)
}

fn gone(pid: Pid) {
    wait(|| test_kill_process(pid).map_or(Ok(()), |()| Err(format!("{pid:?} is there"))));
}

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
