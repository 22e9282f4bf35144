// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's own device in QEMU without a guest: the test is the processor (qtest), and reads and writes
//! the device's registers, with a daemon and without.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::vmm::qemu::built;

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
/// Where the device is on the bus, and the memory that its registers are given.
const SLOT: u32 = 4;
const REGISTERS: u64 = 0xe000_0000;

/// Registers of PCI, and of a capability.
const ID: u32 = 0;
const COMMAND: u32 = 4;
const BAR0: u32 = 0x10;
const CAPABILITIES: u32 = 0x34;
const CAP_BAR: u32 = 4;
const CAP_OFFSET: u32 = 8;
/// Bits of the command register.
const MEMORY_AND_MASTER: u32 = 2 | 4;
/// Capabilities: of MSI-X, and of virtio with their kinds (virtio 1.3, section 4.1.4).
const MSIX: u32 = 0x11;
const VIRTIO: u32 = 9;
const COMMON: u32 = 1;
const DEVICE: u32 = 4;

/// Offsets in the common configuration, and in that of a balloon (sections 4.1.4.3 and 5.5.4).
const STATUS: u64 = 20;
const NUM_PAGES: u64 = 0;
const ACTUAL: u64 = 4;
const ACKNOWLEDGE_AND_DRIVER: u32 = 1 | 2;

/// QEMU that does what it is told on its standard input.
struct Machine {
    qemu: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Machine {
    fn start(command: &mut Command, socket: &Path) -> Self {
        let memory = "memory-backend-memfd,id=mem,size=64M,share=on";
        let chardev = format!("socket,id=balloon,path={},reconnect-ms=10", socket.display());
        command.args(["-nodefaults", "-display", "none", "-qtest", "stdio", "-qtest-log", "none"]);
        command.args(["-machine", "q35,accel=qtest,memory-backend=mem", "-m", "64M"]);
        command.args(["-object", memory, "-chardev", &chardev, "-device"]);
        command.arg(format!("vhost-user-balloon-pci,chardev=balloon,addr={SLOT}"));
        let mut qemu = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (say, hear) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
        Self { qemu, say, hear: BufReader::new(hear) }
    }

    /// Gives an order; returns the number of the answer, 0 if it has none.
    fn order(&mut self, order: &str) -> u32 {
        writeln!(self.say, "{order}").unwrap();
        let mut answer = String::new();
        loop {
            answer.clear();
            assert_ne!(self.hear.read_line(&mut answer).unwrap(), 0, "QEMU ended after {order:?}");
            // Interrupts are told in between.
            if !answer.starts_with("IRQ") {
                break;
            }
        }
        let said = answer.trim().strip_prefix("OK").unwrap_or_else(|| panic!("{order}: {answer}"));
        let number = said.trim().trim_start_matches("0x");
        u32::from_str_radix(number, 16).unwrap_or(0)
    }

    fn select(&mut self, register: u32) {
        self.order(&format!("outl 0xcf8 {:#x}", 1 << 31 | SLOT << 11 | register));
    }

    fn pci(&mut self, register: u32) -> u32 {
        self.select(register);
        self.order("inl 0xcfc")
    }

    fn set_pci(&mut self, register: u32, value: u32) {
        self.select(register);
        self.order(&format!("outl 0xcfc {value:#x}"));
    }

    fn read(&mut self, address: u64) -> u32 {
        self.order(&format!("readl {address:#x}"))
    }

    fn write(&mut self, address: u64, value: u32) {
        self.order(&format!("writel {address:#x} {value:#x}"));
    }

    fn set_status(&mut self, common: u64, status: u32) {
        self.order(&format!("writeb {:#x} {status:#x}", common + STATUS));
    }

    /// The first capability that is `wanted`, by where it is and its first four bytes.
    fn capability(&mut self, wanted: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let mut at = self.pci(CAPABILITIES) & 0xfc;
        while at != 0 {
            let capability = self.pci(at);
            if wanted(capability) {
                return Some((at, capability));
            }
            at = capability >> 8 & 0xfc;
        }
        None
    }

    /// Vectors of MSI-X.
    fn vectors(&mut self) -> u32 {
        let msix = self.capability(|capability| capability & 0xff == MSIX);
        msix.map_or(0, |(_, capability)| (capability >> 16 & 0x7ff) + 1)
    }

    /// Maps the registers of this kind; returns their address.
    fn map(&mut self, kind: u32) -> u64 {
        let is_it = |capability| capability & 0xff == VIRTIO && capability >> 24 == kind;
        let (at, _) = self.capability(is_it).unwrap();
        let bar = BAR0 + 4 * (self.pci(at + CAP_BAR) & 0xff);
        self.set_pci(bar, u32::try_from(REGISTERS).unwrap());
        self.set_pci(bar + 4, 0);
        let command = self.pci(COMMAND);
        self.set_pci(COMMAND, command | MEMORY_AND_MASTER);
        REGISTERS + u64::from(self.pci(at + CAP_OFFSET))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
#[ignore = "needs a QEMU of our own: cargo xtask qemu"]
fn own_device_answers_without_a_daemon() {
    let toolbox = built::toolbox().unwrap();
    let options = DaemonOptions { args: vec!["--target=16M".into()], ..DaemonOptions::default() };
    let mut daemon = DaemonProcess::spawn(Path::new(DAEMON), &options).unwrap();
    let mut machine = Machine::start(&mut toolbox.qemu.command(), &daemon.socket());

    // Red Hat's number, and that of a balloon.
    assert_eq!(machine.pci(ID), (0x1040 + 5) << 16 | 0x1af4);
    assert_eq!(machine.vectors(), 6, "one a queue, and one of the configuration");

    let [common, config] = [COMMON, DEVICE].map(|kind| machine.map(kind));
    assert_eq!(machine.read(config + NUM_PAGES), 16 << 20 >> 12, "the daemon's target");

    daemon.kill().unwrap();
    assert_eq!(machine.read(config + NUM_PAGES), 16 << 20 >> 12, "without the daemon");
    machine.set_status(common, ACKNOWLEDGE_AND_DRIVER);
    machine.write(config + ACTUAL, 77);
    assert_eq!(machine.read(config + ACTUAL), 77);
    machine.set_status(common, 0);
    assert_eq!(machine.read(config + ACTUAL), 0, "a device that was reset has no balloon");
}
