// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's kernel with lockdep, KASAN and other checks: reporting, memory hotplug and the project's
//! modules trip none of them, and faults that are provoked are seen.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::time::Duration;

use guest_agent::Failure;
use vmm_integration::linux_guest::{AgentClient, isolation, modules};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest, Toolbox};

const MIB: u64 = 1 << 20;
/// The checks make an emulated guest many times slower.
const PATIENCE: Duration = Duration::from_secs(600);
const EVERY: Duration = Duration::from_millis(100);
/// Boots until one is clean.
const BOOTS: u32 = 3;
/// A file of the module that provokes faults, which takes the name of one.
const PROVOKE: &str = "/sys/kernel/debug/provoke-crash/DIRECT";

fn toolbox() -> Toolbox {
    Toolbox { kernel: qemu::debug_kernel().unwrap(), ..qemu::available().unwrap() }
}

/// Boots it with every check on.
fn boot(toolbox: &Toolbox, modules: &[&str]) -> LinuxGuest {
    for _ in 0..BOOTS {
        let config = GuestConfig {
            memory_bytes: 2048 * MIB,
            balloon: Balloon::Qemu,
            modules: modules.iter().copied().map(str::to_owned).collect(),
            own_modules: true,
            kernel_args: vec!["movablecore=1G".to_owned()],
            boot_timeout: PATIENCE,
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(toolbox, config).unwrap();
        println!("up after {} ms with {}", guest.hello().uptime_ms, guest.accel());
        let splats = guest.splats().unwrap();
        if splats.is_empty() {
            return guest;
        }
        // One boot in some ten: an interrupt comes while the CPU's features are read, and KASAN takes
        // good addresses for wild. Lockdep is off from then on.
        println!("while it booted: {splats:?}");
    }
    panic!("no clean boot out of {BOOTS}");
}

/// Uses memory and frees it, and takes a block offline and online.
fn churn(agent: &AgentClient, block: u32) {
    agent.alloc(1, 128 * MIB, 1).unwrap();
    agent.free(1).unwrap();
    let state = format!("/sys/devices/system/memory/memory{block}/state");
    wait_until(PATIENCE, EVERY, || match agent.write_file(&state, "offline") {
        Err(error) if is_busy(&error) => Err(format!("{error:#}")),
        other => Ok(other),
    })
    .unwrap()
    .unwrap();
    agent.write_file(&state, "online_movable").unwrap();
}

/// Whether a block did not go offline because its memory is held at this moment.
fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.errno.as_deref() == Some("EBUSY"))
}

#[test]
#[ignore = "needs a Linux guest and a debug kernel: cargo xtask kernel --debug"]
fn modules_and_hotplug_trip_no_check() {
    let toolbox = toolbox();
    let guest = boot(&toolbox, &[]);
    let agent = guest.agent();
    guest.load_balloon_driver("").unwrap();
    // KASAN and others have their tables in the last blocks; those never go offline.
    let block = agent.memory_blocks().unwrap().movable()[1];
    churn(agent, block);
    // This build's __free_one_page is not what the hook knows. It says so, and hooks nothing.
    let error = agent.load_module(modules::ISOLATION_REPORTING, "").unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert_eq!(failure.errno.as_deref(), Some("ENOEXEC"), "{error:#}");
    guest.splats().unwrap();
    let serial = guest.serial().unwrap();
    assert!(
        serial.contains("refused: __free_one_page of this build does not end as known"),
        "{serial}"
    );
    let before = guest.own_device_discards().unwrap().bytes;
    churn(agent, block);
    wait_until(PATIENCE, EVERY, || match guest.own_device_discards().unwrap().bytes - before {
        few if few < 64 * MIB => Err(format!("mainline has reported {few} bytes")),
        _ => Ok(()),
    })
    .unwrap();
    for params in ["hold=isolate", "hold=pull", "tracker=section-bit", "tracker=zone-bitmap"] {
        isolation::load(agent, &format!("hook=free-paths {params}")).unwrap();
        churn(agent, block);
        isolation::unload(agent).unwrap();
    }
    guest.agent().unload_balloon_driver().unwrap();
    assert_eq!(guest.splats().unwrap(), Vec::<String>::new());
    // It turns itself off after a report.
    let lockdep = agent.read_file("/proc/lockdep_stats").unwrap();
    let on = lockdep.lines().find(|line| line.contains("debug_locks:")).expect("lockdep");
    assert!(on.ends_with(" 1"), "lockdep is off: {on}");
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}

#[test]
#[ignore = "needs a Linux guest and a debug kernel: cargo xtask kernel --debug"]
fn provoked_faults_are_seen_on_the_console() {
    let guest = boot(&toolbox(), &["kernel/drivers/misc/lkdtm/lkdtm"]);
    let agent = guest.agent();
    agent.load_module("lkdtm", "").unwrap();
    for (fault, report) in [
        ("READ_AFTER_FREE", "BUG: KASAN: slab-use-after-free in"),
        ("CORRUPT_LIST_ADD", "list_add corruption"),
        // The last: a lock stays taken.
        ("SPINLOCKUP", "BUG: sleeping function called from invalid context"),
    ] {
        let before = guest.splats().unwrap();
        agent.write_file(PROVOKE, fault).unwrap();
        let after = guest.splats().unwrap();
        println!("{fault}: {:?}", &after[before.len()..]);
        let new = &after[before.len()..];
        assert!(new.iter().any(|line| line.contains(report)), "{fault}: {new:?}");
    }
}
