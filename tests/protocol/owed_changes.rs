// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A change of the configuration while no driver runs is kept and owed. QEMU 11.1 ends with SIGSEGV
//! of one that it is told of before the driver is loaded, after it was unloaded, in a reset, or
//! while the guest is stopped.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::GuestRam;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SOON: Duration = Duration::from_secs(20);

struct Device {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Device {
    fn start(args: &[&str]) -> Self {
        let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
        let daemon = DaemonProcess::spawn_controlled(binary, args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Self { daemon, control }
    }

    fn set_target(&self, bytes: u64) -> Value {
        let body = json!({ "bytes": bytes }).to_string();
        self.control.done("PUT", "/v1/target", &body).unwrap()
    }

    fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        Attachment::connect(&self.daemon.socket(), &ram, AttachOptions::default()).unwrap()
    }

    /// Waits until the guest says that as much is in its balloon.
    fn until_actual(&self, bytes: u64) {
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = self.control.get("/v1/status").map_err(|error| error.to_string())?;
            if status["actual_bytes"] == bytes { Ok(()) } else { Err(status.to_string()) }
        })
        .unwrap();
    }
}

/// Sets one target after another while no driver runs, as an operator does that gets impatient.
/// QEMU reads its channel at once; that it lives afterwards is what counts.
fn set_targets(device: &Device, guest: &LinuxGuest, last: u64) {
    for i in 0..20 {
        device.set_target(i * MIB);
        // A round through QEMU's main loop: it has read its channel.
        let _ = guest.qmp().is_guest_running().unwrap();
    }
    device.set_target(last);
    let _ = guest.qmp().is_guest_running().unwrap();
    assert!(guest.is_running(), "QEMU has died: {:?}", guest.stderr());
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn qemu_outlives_targets_that_no_driver_is_there_for() {
    let toolbox = qemu::available().unwrap();
    let device = Device::start(&["--statistics", "--free-page-hints"]);
    let config = GuestConfig {
        balloon: Balloon::VhostUser { socket: device.daemon.socket() },
        // Else a reset is QEMU's end.
        qemu_args: ["-action", "reboot=reset"].map(str::to_owned).into(),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();

    // Before the driver is loaded.
    set_targets(&device, &guest, 64 * MIB);
    let refused = device.control.ask("POST", "/v1/hinting/start", "").unwrap();
    assert_eq!(refused.status, 409, "{refused:?}");
    guest.load_balloon_driver("").unwrap();
    device.until_actual(64 * MIB);

    // While the guest is stopped, where it is told afterwards.
    guest.qmp().stop().unwrap();
    set_targets(&device, &guest, 96 * MIB);
    let refused = device.control.ask("POST", "/v1/hinting/start", "").unwrap();
    assert_eq!(refused.status, 409, "{refused:?}");
    guest.qmp().cont().unwrap();
    device.until_actual(96 * MIB);

    // After the driver was unloaded.
    guest.agent().unload_module("virtio_balloon").unwrap();
    set_targets(&device, &guest, 32 * MIB);
    guest.load_balloon_driver("").unwrap();
    device.until_actual(32 * MIB);

    // In a reset, and while the guest boots.
    guest.qmp().system_reset().unwrap();
    set_targets(&device, &guest, 48 * MIB);
    wait_until(PATIENCE, LOOK_EVERY, || match guest.agent().hello() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .unwrap();
    set_targets(&device, &guest, 16 * MIB);
    guest.load_balloon_driver("").unwrap();
    device.until_actual(16 * MIB);
    assert!(guest.is_running());
    drop(guest);
    let log = device.daemon.log();
    assert!(!log.contains("ERROR"), "{log}");
}

/// Without SET_VRING_ENABLE, too, since what counts is that a queue runs.
#[test]
fn config_change_while_stopped_is_sent_at_queue_start() {
    let device = Device::start(&[]);
    let mut guest = device.attach();
    let queues = guest.stop().unwrap();
    device.set_target(MIB);
    // Everything that the daemon has sent before this answer is there.
    let read = guest.get_config().unwrap();
    assert_eq!(u64::from(read.num_pages) * 4096, MIB);
    assert!(!guest.wait_config_change(Duration::ZERO).unwrap());
    for (queue, base) in queues {
        guest.start_queue(queue, base).unwrap();
        guest.enable_queue(queue, true).unwrap();
    }
    assert!(guest.wait_config_change(SOON).unwrap());
    device.set_target(0);
    assert!(guest.wait_config_change(SOON).unwrap());
}

/// Its driver may be unbound right behind its last chain: it is told a little later, and not at all
/// if its queues have stopped by then.
#[test]
fn round_end_after_driver_removal_is_not_sent() {
    let device = Device::start(&["--statistics", "--free-page-hints"]);
    let mut guest = device.attach();
    let id = device.control.done("POST", "/v1/hinting/start", "").unwrap()["requested_id"].clone();
    let id = u32::try_from(id.as_u64().unwrap()).unwrap();
    assert!(guest.wait_config_change(SOON).unwrap());
    let hints = guest.index(BalloonQueue::FreePage).unwrap();
    let at = guest.scratch().start();
    let command = |guest: &mut Attachment, id: u32| {
        guest.ram().write(at, &id.to_le_bytes()).unwrap();
        guest.submit_and_wait(hints, &[Buffer::readable(at, 4)]).unwrap();
    };
    command(&mut guest, id);
    command(&mut guest, 0);
    let queues = guest.stop().unwrap();
    let status = device.control.get("/v1/status").unwrap();
    assert_eq!(status["hinting"]["state"], "done");
    let ended_early = guest.wait_config_change(Duration::from_millis(300)).unwrap();
    for (queue, base) in queues {
        guest.start_queue(queue, base).unwrap();
        guest.enable_queue(queue, true).unwrap();
    }
    // On a machine that takes more than 100 ms to stop a queue it has been told before.
    assert!(ended_early || guest.wait_config_change(SOON).unwrap());
    assert_eq!(guest.get_config().unwrap().free_page_hint_cmd_id, 1);
}
