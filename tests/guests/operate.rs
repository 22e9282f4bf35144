// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page `docs/user/operate.md`, command by command, on a Debian with systemd, libvirt and QEMU.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmm_integration::debian::DebianMachine;
use vmm_integration::linux_guest::{self, AgentClient};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu;

const PAGE: &str = include_str!("../../docs/user/operate.md");

const MIB: u64 = 1 << 20;
/// Linux boots and reports under emulation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the daemon is killed, and when the next one must be there: a delay that systemd makes longer
/// each time is some seconds by then.
const HAND_OVERS: usize = 12;
const NEXT_WITHIN: Duration = Duration::from_secs(8);
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;

/// A block of the page: how it is marked, and its lines.
struct Block<'a> {
    kind: &'a str,
    text: &'a str,
}

fn blocks() -> Vec<Block<'static>> {
    let fenced = PAGE.split("\n```").skip(1).step_by(2);
    let block = |text: &'static str| {
        let (kind, text) = text.split_once('\n').unwrap();
        Block { kind, text }
    };
    fenced.map(block).collect()
}

/// The machine with the page's VM, once that is started.
struct Host {
    machine: DebianMachine,
    /// Lines that hold for all blocks after their own.
    exports: String,
}

impl Host {
    /// A machine with the package, a kernel and an initramfs where the page has them.
    fn new() -> Self {
        let machine = DebianMachine::boot().unwrap();
        let package = package();
        fs::copy(&package, machine.path("/root").join(package.file_name().unwrap())).unwrap();
        let toolbox = qemu::available().unwrap();
        let images = machine.path("/var/lib/libvirt/images");
        fs::copy(&toolbox.kernel.image, images.join("vmlinuz")).unwrap();
        fs::copy(toolbox.initramfs().unwrap(), images.join("initrd.img")).unwrap();
        machine.script("chmod 0644 /var/lib/libvirt/images/*").unwrap();
        Self { machine, exports: String::new() }
    }

    fn run(&mut self, text: &str) {
        println!("{text}");
        let said = self.machine.script(&format!("{}{text}", self.exports)).unwrap();
        println!("{said}");
        let lines = text.lines().filter(|line| line.starts_with("export "));
        lines.for_each(|line| self.exports.push_str(&format!("{line}\n")));
    }

    fn ctl(&self, words: &str) -> Value {
        let socket = "/run/vhost-device-balloon/vm1.ctl";
        let line = format!("vhost-device-balloon ctl --control-socket {socket} --json {words}");
        serde_json::from_str(&self.machine.script(&line).unwrap()).unwrap()
    }

    /// Kills the daemon and waits for the next one.
    fn killed(&self) {
        let before = self.ctl("status")["pid"].clone();
        let kill = ["systemctl", "kill", "--signal", "KILL", "vhost-device-balloon@vm1.service"];
        self.machine.run(kill).unwrap();
        let killed = Instant::now();
        wait_until(NEXT_WITHIN, LOOK_EVERY, || match self.ctl("status")["pid"] != before {
            true => Ok(()),
            false => Err("the daemon that was killed answers".to_owned()),
        })
        .unwrap();
        println!("killed, and the next answers after {:?}", killed.elapsed());
    }

    /// Bytes of the guest that the host holds.
    fn resident(&self) -> u64 {
        self.ctl("status")["memory"]["resident_bytes"].as_u64().unwrap()
    }

    fn expect_resident_below(&self, bytes: u64) {
        wait_until(PATIENCE, LOOK_EVERY, || match self.resident() {
            now if now <= bytes => Ok(()),
            now => Err(format!("{now} bytes resident, {bytes} wanted")),
        })
        .unwrap();
    }

    /// The agent of the VM, whose driver is loaded.
    fn guest(&self) -> AgentClient {
        let folder = self.machine.path("/run/libvirt/qemu/channel");
        let port = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let port = fs::read_dir(port).unwrap().next().unwrap().unwrap().path();
        let agent = linux_guest::connect(&port, PATIENCE).unwrap();
        agent.load_module("virtio_balloon", "").unwrap();
        agent
    }
}

/// The package that `cargo xtask test` has built.
fn package() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dist/tested");
    let mut packages =
        fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_package = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "deb");
    packages.find(is_package).expect("no package: cargo xtask test makes it")
}

/// The memory that a guest frees comes back, and what it keeps stays.
fn expect_reclaimed(host: &Host, guest: &AgentClient) {
    guest.alloc(FILLED, 256 * MIB, 2).unwrap();
    let filled = host.resident();
    guest.free(FILLED).unwrap();
    host.expect_resident_below(filled - 200 * MIB);
    guest.expect_intact(KEPT).unwrap();
}

/// What the daemon that listens at this port of the machine's says to Prometheus.
fn metrics(host: &Host, port: u16) -> String {
    let ask = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}
         printf 'GET /metrics HTTP/1.1\\r\\nHost: h\\r\\nConnection: close\\r\\n\\r\\n' >&3
         cat <&3"
    );
    host.machine.script(&ask).unwrap()
}

/// The unit is confined: systemd's own score, 0 to 10, the lower the better.
fn expect_confined(host: &Host) {
    let unit = "vhost-device-balloon@vm1.service";
    let said = host.machine.run(["systemd-analyze", "security", "--no-pager", unit]).unwrap();
    let score = said.lines().find_map(|line| line.split("exposure level for").nth(1)).unwrap();
    let score: f64 = score.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("systemd-analyze security: {score}");
    assert!(score < 2.0, "{said}");
}

#[test]
#[ignore = "needs a Linux guest and a Debian machine: cargo xtask test"]
fn page_for_operators_works_command_by_command() {
    let mut host = Host::new();
    let before = host.machine.changes().unwrap();
    let mut guest = None;
    for Block { kind, text } in blocks() {
        if kind == "xml" {
            // The only thing that the page's VM lacks: a port for the agent of the test.
            let port = "<channel type='unix'><target type='virtio' \
                        name='org.vhost-device-balloon.agent'/></channel>\n  </devices>";
            let text = text.replace("</devices>", port);
            fs::write(host.machine.path("/root/vm1.xml"), text).unwrap();
            continue;
        }
        assert_eq!(kind, "sh", "{text}");
        let has = |command: &str| text.lines().any(|line| line.starts_with(command));
        if has("virsh destroy") {
            // One that an operator forgets to disable.
            host.run("systemctl enable vhost-device-balloon@vm3.socket");
            drop(guest.take());
        }
        host.run(text);
        if has("virsh start") {
            let agent = host.guest();
            agent.alloc(KEPT, 64 * MIB, 1).unwrap();
            expect_reclaimed(&host, &agent);
            expect_confined(&host);
            // Killed, the next daemon goes on with the VM: systemd has kept what it needs. It counts
            // the restarts, and the last one must be as quick as the first.
            for _ in 0..HAND_OVERS {
                host.killed();
            }
            expect_reclaimed(&host, &agent);
            guest = Some(agent);
        }
        let hands_over = has("systemctl kill") || has("vhost-device-balloon ctl upgrade");
        if let Some(guest) = guest.as_ref().filter(|_| hands_over) {
            expect_reclaimed(&host, guest);
            let metrics = metrics(&host, 9142);
            assert!(metrics.contains("\nballoon_connected{vm=\"vm1\"} 1\n"), "{metrics}");
        }
    }
    assert!(guest.is_none(), "the page ends its VM");
    let unmade =
        ["passwd", "group"].map(|file| host.machine.run(["getent", file, "vhost-balloon"]));
    assert!(unmade.iter().all(Result::is_err), "{unmade:?}");
    let groups = host.machine.run(["cat", "/etc/group", "/etc/gshadow"]).unwrap();
    assert!(!groups.contains("vhost-balloon"), "{groups}");
    let mut left = host.machine.changes().unwrap();
    left.retain(|path| !before.contains(path) && path.to_string_lossy().contains("balloon"));
    assert_eq!(left, Vec::<PathBuf>::new(), "left of the package");
}
