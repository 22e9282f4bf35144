// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain as virt-launcher writes it, through the hook over gRPC, defined and started by libvirt, with a Linux guest
//! that frees memory. The hook and QEMU share what the containers of a pod would share, and nothing else.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use balloon_kubevirt_hook::protocol::{
    Client, Empty, InfoResult, OnDefineDomainParams, OnDefineDomainResult, path,
};
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::debian::DebianMachine;
use vmm_integration::linux_guest::{self, AgentClient};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, built};

const HOOK: &str = env!("CARGO_BIN_EXE_balloon-kubevirt-hook");
const DOMAIN: &str = include_str!("data/domain.xml");
const VMI: &str = include_str!("data/vmi.json");
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;

/// The folder of the hook's volume in QEMU's container.
const VOLUME: &str = "/run/kubevirt-hooks/hook-sidecar-0";

/// What virt-launcher has made by then, and the hook as the user and with the rights of a VM that runs as no root.
const START: &str = "\
mkdir -p /var/run/kubevirt-private/vmi-disks/root /var/run/kubevirt-private/5d0e6a4b
truncate --size 16M /var/run/kubevirt-private/vmi-disks/root/disk.img
chown -R libvirt-qemu:libvirt-qemu /var/run/kubevirt-private
mkdir -p /var/run/kubevirt-hooks/hook-sidecar-0
chown -R libvirt-qemu:libvirt-qemu /var/run/kubevirt-hooks
systemd-run --quiet --unit hook --uid libvirt-qemu --gid libvirt-qemu \\
    --property BindPaths=/run/kubevirt-hooks/hook-sidecar-0:/run/kubevirt-hooks \\
    --property NoNewPrivileges=yes --property CapabilityBoundingSet= --property KillMode=mixed \\
    --property RemainAfterExit=yes --property TimeoutStopSec=120 --setenv CONTAINER_NAME=hook-sidecar-0 \\
    /usr/local/bin/balloon-kubevirt-hook
timeout 60 sh -c 'until test -S /run/kubevirt-hooks/hook-sidecar-0/vhost-device-balloon.sock; do sleep 0.1; done'
";

struct Pod(DebianMachine);

impl Pod {
    fn new() -> Self {
        let machine = DebianMachine::boot().unwrap();
        let toolbox = qemu::available().unwrap();
        let folder = "/var/run/kubevirt/container-disks/kernel-boot-artifacts";
        machine.script(&format!("mkdir -p {folder}")).unwrap();
        let boot = machine.path("/run/kubevirt/container-disks/kernel-boot-artifacts");
        fs::copy(&toolbox.kernel.image, boot.join("vmlinuz")).unwrap();
        fs::copy(toolbox.initramfs().unwrap(), boot.join("initrd.img")).unwrap();
        machine.script(&format!("chmod -R a+rX {folder}")).unwrap();
        let daemon = daemon();
        for program in [Path::new(HOOK), &daemon] {
            let name = program.file_name().unwrap();
            fs::copy(program, machine.path("/usr/local/bin").join(name)).unwrap();
        }
        machine.script(START).unwrap();
        Self(machine)
    }

    fn define(&self, domain: &str) -> String {
        self.define_as(domain, VMI)
    }

    fn define_as(&self, domain: &str, vmi: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = self.0.path(&format!("{VOLUME}/vhost-device-balloon.sock"));
        let asked = OnDefineDomainParams { domain_xml: domain.into(), vmi: vmi.into() };
        let answer = runtime.block_on(async {
            let mut client = Client::connect(&socket).await.unwrap();
            let info: InfoResult = client.call(path::INFO, Empty {}).await.unwrap();
            println!("{info:?}");
            client.call::<_, OnDefineDomainResult>(path::ON_DEFINE_DOMAIN, asked).await
        });
        String::from_utf8(
            answer.unwrap_or_else(|error| panic!("{error}\n{}", self.log())).domain_xml,
        )
        .unwrap()
    }

    fn log(&self) -> String {
        self.0.run(["journalctl", "--unit", "hook.service", "--no-pager"]).unwrap()
    }

    fn status(&self) -> anyhow::Result<Value> {
        let socket = self.0.path(&format!("{VOLUME}/balloon/vm.ctl"));
        ControlSocket::new(&socket, PATIENCE).get("/v1/status")
    }

    fn resident(&self) -> u64 {
        self.status().unwrap()["memory"]["resident_bytes"].as_u64().unwrap()
    }

    /// The agent of the VM, whose driver is loaded.
    fn guest(&self) -> AgentClient {
        let folder = self.0.path("/run/libvirt/qemu/channel");
        let port = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let port = fs::read_dir(port).unwrap().next().unwrap().unwrap().path();
        let agent = linux_guest::connect(&port, PATIENCE).unwrap_or_else(|error| {
            let logs = "tail -n 40 /var/log/libvirt/qemu/*.log; virsh list --all";
            panic!("{error:#}\n{}", self.0.script(logs).unwrap())
        });
        agent.load_module("virtio_balloon", "").unwrap();
        agent
    }

    /// Memory that the guest frees comes back, and what it keeps stays.
    fn expect_reclaimed(&self, guest: &AgentClient) {
        guest.alloc(FILLED, 256 * MIB, 2).unwrap();
        let filled = self.resident();
        guest.free(FILLED).unwrap();
        wait_until(PATIENCE, LOOK_EVERY, || match self.resident() {
            now if now <= filled - 200 * MIB => Ok(()),
            now => Err(format!("{now} bytes resident of {filled}")),
        })
        .unwrap();
        guest.expect_intact(KEPT).unwrap();
        let status = self.status().unwrap();
        assert_eq!(status["driver"], "reporting", "{status}");
        println!("{filled} bytes resident, {} after the guest freed 256 MiB", self.resident());
    }
}

fn daemon() -> PathBuf {
    let program = Path::new(HOOK).with_file_name("vhost-device-balloon");
    if !program.exists() {
        let build = [
            "build",
            "--quiet",
            "--package",
            "vhost-device-balloon",
            "--bin",
            "vhost-device-balloon",
        ];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success());
    }
    program
}

#[test]
#[ignore = "needs a Linux guest and a Debian machine and a full run: cargo xtask test --full"]
fn libvirt_starts_what_the_hook_returns() {
    let pod = Pod::new();
    // The only difference: a port for the agent of the test.
    let domain = DOMAIN.replace("org.qemu.guest_agent.0", "org.vhost-device-balloon.agent");
    let xml = pod.define(&domain);
    fs::write(pod.0.path("/root/vm1.xml"), &xml).unwrap();
    // virt-launcher writes these, libvirt takes them, and its schema does not.
    let invalid = ["<bios></bios>", "<baseBoard></baseBoard>", "<chassis></chassis>"];
    let valid = invalid.iter().fold(domain, |domain, empty| domain.replace(empty, ""));
    fs::write(pod.0.path("/root/valid.xml"), pod.define(&valid)).unwrap();
    let said =
        pod.0.script("virt-xml-validate valid.xml && virsh define vm1.xml && virsh start shop_vm1");
    println!("{}", said.unwrap_or_else(|error| panic!("{error:#}\n{xml}\n{}", pod.log())));
    let guest = pod.guest();
    guest.alloc(KEPT, 64 * MIB, 1).unwrap();
    pod.expect_reclaimed(&guest);
    let status = pod.status().unwrap();
    assert_eq!(status["name"], "shop/vm1");
    // What libvirt has, and gives to the hook when it defines the domain again, is accepted.
    let defined = pod.0.run(["virsh", "dumpxml", "--inactive", "shop_vm1"]).unwrap();
    assert_eq!(pod.define(&defined), defined);

    let before = status["pid"].clone();
    // Numbers in the status are those of the machine.
    pod.0.script(&format!("kill -KILL {before}")).unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || match pod.status() {
        Ok(status) if status["pid"] != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    pod.expect_reclaimed(&guest);

    // A pod that ends signals all containers, and the guest shuts down meanwhile.
    pod.0.script("systemctl kill --kill-whom main --signal TERM hook.service").unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || match pod.log() {
        log if log.contains("told to end, and the VM still runs") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    pod.expect_reclaimed(&guest);
    pod.0.script("virsh destroy shop_vm1 && virsh undefine shop_vm1").unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let show =
            ["systemctl", "show", "--value", "--property", "SubState,Result", "hook.service"];
        match pod.0.run(show).unwrap() {
            state if state.contains("exited") && state.contains("success") => Ok(()),
            state => Err(state),
        }
    })
    .unwrap();
    println!("{}", pod.log());
}

/// Beside the program that was built, QEMU finds the firmware that Debian has elsewhere.
const FIRMWARE: &str = "\
mkdir -p /usr/local/share/qemu
cp -rs /usr/share/qemu/. /usr/share/seabios/. /usr/local/share/qemu/
";

#[test]
#[ignore = "needs a QEMU of our own and a Debian machine and a full run: cargo xtask test --full"]
fn own_device_connects_to_the_next_keeper() {
    let pod = Pod::new();
    fs::copy(built::program().unwrap(), pod.0.path("/usr/local/bin/qemu-system-x86_64")).unwrap();
    pod.0.script(FIRMWARE).unwrap();
    let emulator = "<devices>\n\t\t<emulator>/usr/local/bin/qemu-system-x86_64</emulator>";
    let domain = DOMAIN.replace("org.qemu.guest_agent.0", "org.vhost-device-balloon.agent");
    let domain = domain.replace("<devices>", emulator);
    // Our QEMU is built without a display.
    let between = |end: &str| domain.find(end).unwrap() + end.len();
    let display = domain.find("<video>").unwrap()..between("</graphics>");
    let domain = domain.replace(&domain[display], "<video><model type='none'/></video>");
    let asked =
        "vhost-device-balloon/device\": \"vhost-user-balloon\",\n      \"kubevirt.io/latest";
    let xml = pod.define_as(&domain, &VMI.replace("kubevirt.io/latest", asked));
    fs::write(pod.0.path("/root/vm1.xml"), &xml).unwrap();
    let said = pod.0.script("virsh define vm1.xml && virsh start shop_vm1");
    println!("{}", said.unwrap_or_else(|error| panic!("{error:#}\n{xml}\n{}", pod.log())));
    let guest = pod.guest();
    guest.alloc(KEPT, 64 * MIB, 1).unwrap();
    pod.expect_reclaimed(&guest);
    // Both: what the keeper held is gone, and QEMU connects to what the hook starts.
    let before = pod.status().unwrap()["pid"].clone();
    let kill = format!("kill -KILL $(sed -n 's/^PPid:\\t//p' /proc/{before}/status) {before}");
    pod.0.script(&kill).unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || match pod.status() {
        Ok(status) if status["pid"] != before && status["driver"] == "reporting" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    pod.expect_reclaimed(&guest);
    let log = pod.log();
    assert!(log.contains("the keeper of the daemon ended by itself"), "{log}");
    pod.0.script("virsh destroy shop_vm1").unwrap();
    println!("{}", pod.log());
}
