// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! libvirt's `setmem` through the project's own device, on a Debian with libvirt.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vmm_integration::debian::DebianMachine;
use vmm_integration::linux_guest;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, built};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const MIB: u64 = 1 << 20;

/// As the page for operators has it, with our QEMU and our device.
const DOMAIN: &str = "\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>vm1</name>
  <memory unit='MiB'>512</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/var/lib/libvirt/images/vmlinuz</kernel>
    <initrd>/var/lib/libvirt/images/initrd.img</initrd>
    <cmdline>console=ttyS0</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/local/bin/qemu-system-x86_64</emulator>
    <memballoon model='none'/>
    <serial type='file'><source path='/var/log/libvirt/qemu/serial.log'/></serial>
    <channel type='unix'><target type='virtio' name='org.vhost-device-balloon.agent'/></channel>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='socket,id=balloon,path=/run/balloon.sock,reconnect-ms=100'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='vhost-user-balloon-pci,chardev=balloon,bus=pcie.0,addr=0x10'/>
  </qemu:commandline>
</domain>
";

/// Beside the program that was built, QEMU finds the firmware that Debian has elsewhere.
const START: &str = "\
mkdir -p /usr/local/share/qemu
cp -rs /usr/share/qemu/. /usr/share/seabios/. /usr/local/share/qemu/
systemd-run --quiet --unit balloon /usr/local/bin/vhost-device-balloon --socket-path /run/balloon.sock \\
    --socket-group libvirt-qemu --socket-mode 660 --control-socket /run/balloon.ctl --target-from-vmm
timeout 60 sh -c 'until test -S /run/balloon.sock; do sleep 0.1; done'
virsh define /root/vm1.xml
virsh start vm1
";

const STATUS: [&str; 6] = [
    "/usr/local/bin/vhost-device-balloon",
    "ctl",
    "--control-socket",
    "/run/balloon.ctl",
    "--json",
    "status",
];

#[test]
#[ignore = "needs a QEMU of our own and a Debian machine: cargo xtask test"]
fn setmem_of_libvirt_goes_up_and_down() {
    let machine = DebianMachine::boot().unwrap();
    let toolbox = qemu::available().unwrap();
    let images = machine.path("/var/lib/libvirt/images");
    fs::copy(&toolbox.kernel.image, images.join("vmlinuz")).unwrap();
    fs::copy(toolbox.initramfs().unwrap(), images.join("initrd.img")).unwrap();
    machine.script("chmod 0644 /var/lib/libvirt/images/*").unwrap();
    // The machine is the Debian that it was compiled for.
    let qemu = built::program().unwrap();
    fs::copy(qemu, machine.path("/usr/local/bin/qemu-system-x86_64")).unwrap();
    fs::copy(Path::new(DAEMON), machine.path("/usr/local/bin/vhost-device-balloon")).unwrap();
    fs::write(machine.path("/root/vm1.xml"), DOMAIN).unwrap();
    println!("{}", machine.script(START).unwrap());
    let folder = machine.path("/run/libvirt/qemu/channel");
    let port = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let port = fs::read_dir(port).unwrap().next().unwrap().unwrap().path();
    let agent = linux_guest::connect(&port, PATIENCE).unwrap_or_else(|error| {
        let logs = "tail -n 40 /var/log/libvirt/qemu/*.log; virsh list --all";
        panic!("{error:#}\n{}", machine.script(logs).unwrap())
    });
    agent.load_module("virtio_balloon", "").unwrap();
    for left in [300, 512, 400] {
        machine.run(["virsh", "setmem", "vm1", "--live", "--size", &format!("{left}M")]).unwrap();
        // `dommemstat` asks a balloon that libvirt knows, and there is none.
        let taken = (512 - left) * MIB;
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status: Value = serde_json::from_str(&machine.run(STATUS).unwrap()).unwrap();
            let [target, actual] = ["target_bytes", "actual_bytes"].map(|name| &status[name]);
            if *target == taken && *actual == taken {
                println!("{left} MiB left: the daemon has target and actual {taken}");
                return Ok(());
            }
            Err(format!("{left} MiB wanted: target {target}, actual {actual}"))
        })
        .unwrap();
    }
    machine.script("virsh destroy vm1").unwrap();
}
