// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hook as a process, and what virt-launcher does with it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use balloon_kubevirt_hook::protocol::{Client, OnDefineDomainParams, OnDefineDomainResult, path};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;
use vmm_integration::control::ControlSocket;
use vmm_integration::measure::host::wait_until;

pub(crate) const HOOK: &str = env!("CARGO_BIN_EXE_balloon-kubevirt-hook");
pub(crate) const DOMAIN: &str = include_str!("../data/domain.xml");
pub(crate) const VMI: &str = include_str!("../data/vmi.json");
pub(crate) const VMM_SOCKET: &str = "/launcher/hook-sidecar-0/balloon/vm.sock";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A program of this workspace, which cargo has beside the hook's when it tests all.
pub(crate) fn program(name: &str) -> PathBuf {
    let program = Path::new(HOOK).with_file_name(name);
    if !program.exists() {
        let build = ["build", "--quiet", "--package", name, "--bin", name];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    program
}

pub(crate) fn wait<T>(condition: impl FnMut() -> Result<T, String>) -> T {
    wait_until(PATIENCE, LOOK_EVERY, condition).unwrap()
}

/// A hook that serves in a folder of its own.
pub(crate) struct Hook {
    pub(crate) process: Child,
    pub(crate) dir: TempDir,
    log: PathBuf,
}

impl Hook {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sockets")).unwrap();
        Self::start_in(dir)
    }

    /// In a folder with one for the sockets.
    pub(crate) fn start_in(dir: TempDir) -> Self {
        let command = Self::command(dir.path());
        Self::serve(dir, command)
    }

    /// With another program for the daemon, in that folder.
    pub(crate) fn start_with(dir: TempDir, daemon: &str) -> Self {
        let mut command = Command::new(HOOK);
        command.arg("--directory").arg(dir.path().join("sockets"));
        command.arg("--daemon").arg(dir.path().join(daemon));
        Self::serve(dir, command)
    }

    fn serve(dir: TempDir, mut command: Command) -> Self {
        let log = dir.path().join("log");
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

    pub(crate) fn command(dir: &Path) -> Command {
        let mut command = Command::new(HOOK);
        command.arg("--directory").arg(dir.join("sockets")).arg("--daemon");
        command.arg(program("vhost-device-balloon"));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sockets/vhost-device-balloon.sock")
    }

    pub(crate) fn vmm_socket(&self) -> PathBuf {
        self.dir.path().join("sockets/balloon/vm.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn call<A, B>(&self, at: &'static str, parameters: A) -> Result<B, Status>
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

    pub(crate) fn define(&self, domain: &str, vmi: &str) -> Result<String, Status> {
        let asked = OnDefineDomainParams { domain_xml: domain.into(), vmi: vmi.into() };
        let done: OnDefineDomainResult = self.call(path::ON_DEFINE_DOMAIN, asked)?;
        Ok(String::from_utf8(done.domain_xml).unwrap())
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let socket = self.dir.path().join("sockets/balloon/vm.ctl");
        ControlSocket::new(&socket, PATIENCE).get("/v1/status")
    }

    pub(crate) fn pid(&self) -> Pid {
        pid(&self.status().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait(|| self.process.try_wait().unwrap().ok_or_else(|| "the hook runs".to_owned()))
    }

    /// The daemon that answers after another one has ended.
    pub(crate) fn next_after(&self, before: Pid) -> Pid {
        wait(|| match self.status().map(|status| pid(&status)) {
            Ok(next) if next != before => Ok(next),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // A test that failed may have left all three; a daemon without its keeper is told by its status.
        let own =
            (self.process.try_wait().unwrap().is_none()).then(|| Pid::from_child(&self.process));
        let keepers: Vec<_> = own.map(children).unwrap_or_default();
        let daemons: Vec<_> = keepers.iter().copied().flat_map(children).collect();
        let orphan = self.status().ok().map(|status| pid(&status));
        let all = own.into_iter().chain(keepers).chain(daemons).chain(orphan);
        for pid in all {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

pub(crate) fn pid(status: &Value) -> Pid {
    Pid::from_raw(i32::try_from(status["pid"].as_u64().unwrap()).unwrap()).unwrap()
}

fn children(pid: Pid) -> Vec<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The daemon's keeper.
pub(crate) fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(line.trim().parse().ok()?)
}

pub(crate) fn gone(pid: Pid) {
    wait(|| test_kill_process(pid).map_or(Ok(()), |()| Err(format!("{pid:?} is there"))));
}
