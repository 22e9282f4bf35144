// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `top` in a real terminal, before real daemons.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

mod ends;
mod screen;

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Once;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use terminal_screen::Terminal;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon-host");
const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// The daemon's program, which is built unless tests of the whole workspace have.
fn daemon_binary() -> PathBuf {
    static BUILT: Once = Once::new();
    let binary = Path::new(BINARY).with_file_name("vhost-device-balloon");
    BUILT.call_once(|| {
        if !binary.exists() {
            let build = ["build", "--quiet", "--package", "vhost-device-balloon"];
            assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
        }
    });
    binary
}

/// A directory of control sockets.
struct Host {
    dir: TempDir,
    daemons: Vec<DaemonProcess>,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), daemons: Vec::new() }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Starts the daemon of a VM; its control socket is in the directory.
    fn daemon(&mut self, vm: &str) -> ControlSocket {
        let args = ["--statistics", "--name", vm];
        let daemon = DaemonProcess::spawn_controlled(&daemon_binary(), args).unwrap();
        symlink(daemon.control_socket(), self.path(&format!("{vm}.ctl"))).unwrap();
        self.daemons.push(daemon);
        ControlSocket::new(&self.path(&format!("{vm}.ctl")), SOON)
    }

    /// A guest of 64 MiB at the daemon that was started last.
    fn guest(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
        let socket = self.daemons.last().unwrap().socket();
        Attachment::connect(&socket, &ram, AttachOptions::default()).unwrap()
    }

    /// Something in the place of a daemon that accepts clients and says nothing.
    fn silent(&self, vm: &str) -> UnixListener {
        UnixListener::bind(self.path(&format!("{vm}.ctl"))).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("top").arg("--sockets").arg(self.dir.path());
        command.arg("--hostd").arg(self.path("hostd.sock")).args(args);
        command
    }

    fn top(&self, width: u16, height: u16) -> Terminal {
        Terminal::start(&mut self.command(&["--interval", "0.2"]), width, height).unwrap()
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn json_has_the_host_and_each_guest() {
    let mut host = Host::new();
    host.daemon("idle");
    host.daemon("web");
    let _guest = host.guest();
    let _silent = host.silent("stuck");
    let output = host.output(&["--json", "--interval", "0.2"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["host"]["total_bytes"].as_u64().unwrap() > MIB);
    let names: Vec<_> = json["guests"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["idle", "stuck", "web"]);
    let [idle, stuck, web] = [0, 1, 2].map(|index| &json["guests"][index]);
    assert_eq!((&idle["driver"], &idle["memory_bytes"]), (&"no_frontend".into(), &Value::Null));
    assert!(stuck["error"].as_str().unwrap().contains("did not answer within 2s"), "{stuck}");
    assert_eq!(web["memory_bytes"], 64 * MIB);
    assert_eq!(web["reports_per_second"], 0.0);
}

#[test]
fn once_prints_a_table_for_a_pipe() {
    let mut host = Host::new();
    let web = host.daemon("web");
    let _guest = host.guest();
    web.done("PUT", "/v1/target", r#"{"bytes": 1048576}"#).unwrap();
    let output = host.output(&["--once", "--interval", "0.2"]);
    let table = text(&output.stdout);
    assert!(output.status.success() && !table.contains('\u{1b}'), "{table}");
    let row = table.lines().find(|line| line.starts_with("web ")).unwrap();
    let fields: Vec<_> = row.split_whitespace().collect();
    assert_eq!(fields[2..4], ["64M", "1M"], "{table}");
    let alone = ["--once", "--interval", "0.2", "--control-socket", "/nonexistent/other.ctl"];
    let table = text(&host.output(&alone).stdout);
    assert!(table.contains("no answer") && !table.contains("web"), "{table}");
}

#[test]
fn without_a_terminal_top_says_what_to_use() {
    let output = Host::new().output(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("use --once or --json"), "{}", text(&output.stderr));
    let output = Host::new().output(&["--interval", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("from 0.2 to 3600"), "{}", text(&output.stderr));
}
