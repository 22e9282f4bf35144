// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real guest by itself: it boots, does what the agent is asked to, and with QEMU's own balloon
//! gives its memory back.

use std::time::Duration;

use guest_agent::Failure;
use guest_agent::faulting::{FaultingPlan, Work};
use vmm_integration::measure::host::{self, Sampler};
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_guest_without_a_balloon_keeps_its_memory() {
    let toolbox = qemu::available().unwrap();
    let guest = LinuxGuest::boot(&toolbox, GuestConfig::default()).unwrap();
    let agent = guest.agent();
    let hello = guest.hello();
    println!("{} with {} up after {} ms", hello.kernel_release, guest.accel(), hello.uptime_ms);
    assert_eq!(hello.page_bytes, 4096);
    if !toolbox.kernel.release.is_empty() {
        assert_eq!(hello.kernel_release, toolbox.kernel.release);
    }
    assert_eq!(agent.balloon().unwrap(), None);

    let booted = guest.resident_bytes().unwrap();
    agent.alloc(1, 100 * MIB, 3).unwrap();
    assert_eq!(agent.expect_intact(1).unwrap(), 100 * MIB);
    agent.rewrite(1, 4).unwrap();
    assert_eq!(agent.expect_intact(1).unwrap(), 100 * MIB);
    let full = guest.resident_bytes().unwrap();
    agent.free(1).unwrap();
    // Only some of the memory is new to the host: the boot had touched and freed the rest.
    println!("{} MiB after the boot, {} MiB with the allocation", booted / MIB, full / MIB);
    assert!(full > booted && full >= 100 * MIB);
    assert!(guest.resident_bytes().unwrap() >= full, "nothing discards memory");

    for work in Work::ALL {
        let plan = FaultingPlan { work, tasks: 2, bytes: 16 * MIB, milliseconds: 200 };
        let faulted = agent.fault(plan).unwrap();
        println!("{work:?}: {faulted:?}");
        assert!(faulted.pages > 0 && faulted.nanoseconds >= 200_000_000, "{faulted:?}");
    }

    assert!(guest.qmp().is_guest_running().unwrap());
    guest.qmp().stop().unwrap();
    assert!(!guest.qmp().is_guest_running().unwrap());
    guest.qmp().cont().unwrap();
    assert!(agent.hello().unwrap().uptime_ms >= hello.uptime_ms);
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn impossible_requests_are_refused_and_agent_survives() {
    let toolbox = qemu::available().unwrap();
    let config = GuestConfig { memory_bytes: 512 * MIB, cpus: 1, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    let agent = guest.agent();
    let errno = |result: anyhow::Result<()>| {
        let error = result.unwrap_err();
        println!("{error:#}");
        error.downcast_ref::<Failure>().unwrap().errno.clone()
    };
    assert_eq!(errno(agent.alloc(1, 600 * MIB, 0)), None);
    assert_eq!(errno(agent.alloc(1, !4095, 0)), None);
    assert_eq!(errno(agent.alloc(1, 5000, 0)), None);
    assert_eq!(errno(agent.alloc(1, 0, 0)), None);
    assert_eq!(errno(agent.free(1)), None);
    assert_eq!(errno(agent.load_module("no_such_module", "")).as_deref(), Some("ENOENT"));
    assert_eq!(errno(agent.unload_module("no_such_module")).as_deref(), Some("ENOENT"));
    assert_eq!(errno(agent.read_file("/nowhere").map(drop)).as_deref(), Some("ENOENT"));
    assert_eq!(errno(agent.write_file("/proc/version", "x")).as_deref(), Some("EIO"));
    let plan = FaultingPlan { work: Work::File, tasks: 1, bytes: 100 * MIB, milliseconds: 100 };
    for (plan, field) in [
        (FaultingPlan { tasks: 0, ..plan }, "tasks is 0: expected 1 to"),
        (FaultingPlan { tasks: u32::MAX, ..plan }, "tasks is 4294967295: expected 1 to"),
        (FaultingPlan { bytes: u64::MAX, ..plan }, "bytes is 18446744073709551615: "),
        (FaultingPlan { bytes: 5000, ..plan }, "5000 is not a multiple of the page size"),
        (FaultingPlan { bytes: 400 * MIB, ..plan }, "bytes is 419430400: "),
        (FaultingPlan { milliseconds: 600_001, ..plan }, "milliseconds is 600001: expected"),
    ] {
        let error = format!("{:#}", agent.fault(plan).unwrap_err());
        assert!(error.contains(field), "{error}");
    }
    agent.alloc(1, MIB, 0).unwrap();
    assert_eq!(errno(agent.alloc(1, MIB, 0)), None);
    agent.expect_intact(1).unwrap();
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn memory_commands_do_not_hold_up_the_others() {
    let toolbox = qemu::available().unwrap();
    let guest = LinuxGuest::boot(&toolbox, GuestConfig::default()).unwrap();
    let agent = guest.agent();
    std::thread::scope(|scope| {
        let filling: Vec<_> =
            (0..3).map(|id| scope.spawn(move || agent.alloc(id, 100 * MIB, 1))).collect();
        let mut answers = 0;
        while filling.iter().any(|thread| !thread.is_finished()) {
            agent.meminfo().unwrap();
            answers += 1;
        }
        println!("{answers} answers while memory was being filled");
        assert!(answers > 1);
        for thread in filling {
            thread.join().unwrap().unwrap();
        }
    });
    for id in 0..3 {
        agent.expect_intact(id).unwrap();
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn qemus_own_balloon_gives_freed_memory_back() {
    let toolbox = qemu::available().unwrap();
    let config = GuestConfig { balloon: Balloon::Qemu, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    let agent = guest.agent();
    guest.load_balloon_driver("").unwrap();
    let device = agent.balloon().unwrap().expect("a balloon");
    assert_ne!(device.features & 1 << 5, 0, "free page reporting: {device:?}");
    agent.alloc(1, 300 * MIB, 7).unwrap();
    agent.alloc(2, 100 * MIB, 7).unwrap();
    let full = guest.resident_bytes().unwrap();
    let before = guest.own_device_discards().unwrap();

    let memory = guest.memory().try_clone().unwrap();
    let sampler = Sampler::start(Duration::from_millis(20), memory, || None);
    agent.free(1).unwrap();
    // Not all of it comes back: what is less than a pageblock is not reported.
    host::wait_until(Duration::from_secs(60), Duration::from_millis(50), || {
        let now = guest.resident_bytes().map_err(|error| error.to_string())?;
        let fallen = full.saturating_sub(now);
        if fallen >= 270 * MIB { Ok(()) } else { Err(format!("fallen by {} MiB", fallen / MIB)) }
    })
    .unwrap();
    let samples = sampler.stop().unwrap();
    let discards = guest.own_device_discards().unwrap() - before;
    println!(
        "{} -> {} MiB in {:.1} s, {} passes, {discards:?}",
        full / MIB,
        guest.resident_bytes().unwrap() / MIB,
        samples.last().unwrap().seconds,
        host::passes(&samples)
    );
    assert!(discards.bytes >= 270 * MIB && discards.ranges > 0 && discards.failed == 0);

    guest.count_own_discards(false).unwrap();
    let before = guest.own_device_discards().unwrap();
    agent.alloc(3, 100 * MIB, 7).unwrap();
    let full = guest.resident_bytes().unwrap();
    agent.free(3).unwrap();
    host::wait_until(Duration::from_secs(60), Duration::from_millis(50), || {
        let now = guest.resident_bytes().map_err(|error| error.to_string())?;
        if now + 50 * MIB <= full { Ok(()) } else { Err(format!("{} MiB", now / MIB)) }
    })
    .unwrap();
    assert_eq!(guest.own_device_discards().unwrap(), before, "they are not counted");
    assert_eq!(agent.expect_intact(2).unwrap(), 100 * MIB);
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn kernel_boot_failure_is_reported_with_the_console() {
    let toolbox = qemu::available().unwrap();
    let config =
        GuestConfig { kernel_args: vec!["rdinit=/nowhere".to_owned()], ..GuestConfig::default() };
    let error = LinuxGuest::boot(&toolbox, config).err().expect("there is no init").to_string();
    assert!(error.contains("QEMU ended with"), "{error}");
    assert!(error.contains("Kernel panic"), "{error}");

    let config =
        GuestConfig { qemu_args: vec!["-no-such-option".to_owned()], ..GuestConfig::default() };
    let error = LinuxGuest::boot(&toolbox, config).err().expect("a wrong option").to_string();
    assert!(error.contains("no-such-option"), "{error}");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_dropped_guest_is_gone() {
    let toolbox = qemu::available().unwrap();
    let config = GuestConfig { memory_bytes: 256 * MIB, cpus: 1, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    let process = format!("/proc/{}", guest.qemu_pid());
    assert!(guest.is_running() && std::path::Path::new(&process).exists());
    drop(guest);
    assert!(!std::path::Path::new(&process).exists());
}
