// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The scheme of November 2019 in a real kernel: the module reports in place of mainline, rests in a
//! quiet guest, and makes offlining answer while it holds what is reported.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::Failure;
use rustix::process::Signal;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::linux_guest::isolation::{self, Statistics};
use vmm_integration::linux_guest::{AgentClient, modules};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(50);
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// Between two passes, in milliseconds.
const DELAY_MS: u64 = 100;

fn boot(balloon: Balloon) -> LinuxGuest {
    let config = GuestConfig {
        balloon,
        own_modules: true,
        kernel_args: vec!["movablecore=512M".to_owned()],
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&qemu::available().unwrap(), config).unwrap();
    guest.load_balloon_driver("").unwrap();
    guest.agent().write_file(DELAY, &DELAY_MS.to_string()).unwrap();
    guest
}

fn statistics(agent: &AgentClient) -> Statistics {
    Statistics::read(agent).unwrap()
}

/// Waits until `enough`.
fn until(agent: &AgentClient, what: &str, enough: impl Fn(&Statistics) -> bool) -> Statistics {
    wait_until(PATIENCE, EVERY, || {
        let now = statistics(agent);
        if enough(&now) { Ok(()) } else { Err(format!("{what}: {now:?}")) }
    })
    .unwrap();
    statistics(agent)
}

/// Waits while as many passes could run as `delays` says.
fn let_pass(agent: &AgentClient, delays: u64) {
    let end = agent.hello().unwrap().uptime_ms + delays * DELAY_MS;
    wait_until(PATIENCE, EVERY, || {
        let now = agent.hello().unwrap().uptime_ms;
        if now >= end { Ok(()) } else { Err(format!("{now} of {end} ms")) }
    })
    .unwrap();
}

/// Waits for a rest without a single report: what the commands themselves free comes late.
fn rest(agent: &AgentClient, what: &str) {
    wait_until(PATIENCE, Duration::ZERO, || {
        let before = statistics(agent);
        let_pass(agent, 10);
        let rested = statistics(agent).count("chains") == before.count("chains");
        if rested && before.count("chains") > 0 { Ok(()) } else { Err(format!("{what}: no rest")) }
    })
    .unwrap();
}

/// Uses memory and frees it again.
fn churn(agent: &AgentClient) {
    agent.alloc(1, 128 * MIB, 1).unwrap();
    agent.free(1).unwrap();
}

/// Frees memory and waits until mainline has reported it, to QEMU's own device.
fn expect_mainline(guest: &LinuxGuest) {
    let before = guest.own_device_discards().unwrap();
    churn(guest.agent());
    wait_until(PATIENCE, EVERY, || {
        let bytes = (guest.own_device_discards().unwrap() - before).bytes;
        if bytes > 64 * MIB { Ok(()) } else { Err(format!("{} MiB", bytes / MIB)) }
    })
    .unwrap();
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn quiet_guest_rests_unless_it_hears_itself() {
    let guest = boot(Balloon::Qemu);
    let agent = guest.agent();
    let before = guest.own_device_discards().unwrap();
    for params in [
        "hold=isolate tracker=section-bitmap",
        "hold=pull tracker=section-bit",
        "hold=isolate tracker=zone-bitmap",
        "hook=free-paths",
    ] {
        isolation::load(agent, params).unwrap();
        let all = until(agent, params, |now| now.count("pages") > 512 * MIB / 4096);
        churn(agent);
        let freed = 100 * MIB / 4096;
        until(agent, params, |now| now.count("pages") >= all.count("pages") + freed);
        rest(agent, params);
        let end = statistics(agent);
        println!("{params}: {end:?}");
        assert_eq!(end.count("mismatches") + end.count("missed"), 0, "{params}");
        isolation::unload(agent).unwrap();
    }
    assert!(guest.own_device_discards().unwrap().bytes - before.bytes > 512 * MIB);

    // Known bad: each pass marks the sections in which it isolates.
    isolation::load(agent, "tracker=section-bit hear_itself=1").unwrap();
    let first = until(agent, "first pass", |now| now.count("passes") > 1);
    let later = until(agent, "passes", |now| now.count("passes") >= first.count("passes") + 10);
    assert!(later.count("chains") >= first.count("chains") + 10, "{first:?} {later:?}");
    isolation::unload(agent).unwrap();

    expect_mainline(&guest);
    assert_eq!(guest.splats().unwrap(), Vec::<String>::new());
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}

/// Memory that is freed while a pass looks at it.
const FREED: u64 = 256 * MIB;
/// At least so much of it stays with the guest when the mark of a section was lost.
const LOST: u64 = 16 * MIB;

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn marks_cleared_after_the_look_are_lost() {
    let guest = boot(Balloon::Qemu);
    for (clear_first, tries) in [(true, 1), (false, 3)] {
        let params = format!("clear_first={} window_ms=10", u8::from(clear_first));
        isolation::load(guest.agent(), &params).unwrap();
        let lost = (0..tries).any(|_| {
            let kept = kept_of_freed_beside_looks(&guest);
            println!("{params}: of {FREED} bytes {kept} are not reported");
            kept >= LOST
        });
        assert_eq!(lost, !clear_first, "{params}");
        isolation::unload(guest.agent()).unwrap();
    }
    assert_eq!(guest.splats().unwrap(), Vec::<String>::new());
    guest.quit().unwrap();
}

/// Frees memory while a pass looks at all memory, and has found most of this in use;
/// returns how many bytes more the guest has at rest than before it used them.
fn kept_of_freed_beside_looks(guest: &LinuxGuest) -> u64 {
    let agent = guest.agent();
    let looks = || statistics(agent).count("not-free");
    // Another tracker starts with all memory marked.
    let mark_all = || isolation::set(agent, "tracker", "section-bitmap").unwrap();
    let look_at_all = |what: &str| {
        let before = statistics(agent);
        mark_all();
        until(agent, what, |now| now.count("passes") > before.count("passes"));
        rest(agent, what);
        looks() - before.count("not-free")
    };
    look_at_all("before the memory is used");
    let resident = guest.resident_bytes().unwrap();
    agent.alloc(1, FREED, 1).unwrap();
    let all = look_at_all("while it is used");
    let before = looks();
    mark_all();
    until(agent, "looks", |now| now.count("not-free") >= before + all * 3 / 4);
    agent.free(1).unwrap();
    rest(agent, "after the free");
    guest.resident_bytes().unwrap().saturating_sub(resident)
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn offlining_is_refused_while_isolation_holds() {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let mut daemon = DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap();
    let guest = boot(Balloon::VhostUser { socket: daemon.socket() });
    let agent = guest.agent();
    let blocks = agent.memory_blocks().unwrap();
    assert_eq!(blocks.block_bytes, 128 * MIB, "a block is a section");
    // A kept allocation, which no report may touch.
    agent.alloc(2, 64 * MIB, 5).unwrap();
    for hold in ["isolate", "pull"] {
        isolation::load(agent, &format!("hold={hold}")).unwrap();
        let block = hold_a_block(agent, &mut daemon, &blocks.movable());
        let path = state_of(block);
        thread::scope(|scope| {
            let started = Instant::now();
            let offline = scope.spawn(|| agent.write_file(&path, "offline"));
            if hold == "isolate" {
                let error = offline.join().unwrap().unwrap_err();
                println!("isolate: {:?} after {:?}", error.root_cause(), started.elapsed());
                let failure = error.downcast_ref::<Failure>().unwrap();
                assert_eq!(failure.errno.as_deref(), Some("EBUSY"), "{error:#}");
                daemon.signal(Signal::CONT).unwrap();
            } else {
                // It tries again and again until the report comes back.
                let_pass(agent, 10);
                assert!(!offline.is_finished(), "offlining does not wait for what was pulled");
                daemon.signal(Signal::CONT).unwrap();
                offline.join().unwrap().unwrap();
                println!("pull: offline after {:?}", started.elapsed());
                agent.write_file(&path, "online_movable").unwrap();
            }
        });
        wait_until(PATIENCE, EVERY, || match isolation::held_sections(agent) {
            Ok(held) if held.is_empty() => Ok(()),
            held => Err(format!("{held:?}")),
        })
        .unwrap();
        agent.write_file(&path, "offline").unwrap();
        agent.write_file(&path, "online_movable").unwrap();
        isolation::unload(agent).unwrap();
    }
    assert_eq!(agent.expect_intact(2).unwrap(), 64 * MIB);
    assert_eq!(guest.splats().unwrap(), Vec::<String>::new());
    guest.quit().unwrap();
}

/// Stops the daemon and has the guest wait for a report out of a movable memory block; returns the
/// block's number.
fn hold_a_block(agent: &AgentClient, daemon: &mut DaemonProcess, movable: &[u32]) -> u32 {
    wait_until(4 * PATIENCE, Duration::ZERO, || {
        rest(agent, "before the daemon is stopped");
        // Long enough for a cycle: what comes online is free and is reported by the pass that follows.
        agent.write_file(DELAY, "3000").unwrap();
        daemon.signal(Signal::STOP).unwrap();
        let block = cycle_a_block(agent, movable);
        let held = wait_until(PATIENCE, EVERY, || match isolation::held_sections(agent) {
            Ok(held) if !held.is_empty() => Ok(held),
            held => Err(format!("{held:?} are held")),
        })
        .unwrap();
        agent.write_file(DELAY, &DELAY_MS.to_string()).unwrap();
        if held.contains(&block) {
            return Ok(block);
        }
        // Another report came first.
        daemon.signal(Signal::CONT).unwrap();
        Err(format!("{held:?} are held, expected {block}"))
    })
    .unwrap()
}

fn state_of(block: u32) -> String {
    format!("/sys/devices/system/memory/memory{block}/state")
}

/// Takes a memory block offline and online, after which all of it is free; returns its number.
fn cycle_a_block(agent: &AgentClient, movable: &[u32]) -> u32 {
    let goes = |block: &&u32| agent.write_file(&state_of(**block), "offline").is_ok();
    let block = *movable.iter().find(goes).expect("a block that goes offline");
    agent.write_file(&state_of(block), "online_movable").unwrap();
    block
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn module_refuses_what_it_does_not_know() {
    let guest = boot(Balloon::Qemu);
    let agent = guest.agent();
    for params in ["tracker=none", "order=8", "order=11", "batch=0", "batch=33", "hold=keep"] {
        isolation::load(agent, params).unwrap_err();
    }
    isolation::load(agent, "order=10 batch=7").unwrap();
    for (switch, position) in
        [("tracker", "x"), ("order", "8"), ("batch", "0"), ("hook", "free-paths")]
    {
        isolation::set(agent, switch, position).unwrap_err();
    }
    assert!(agent.load_module(modules::ISOLATION_REPORTING, "").is_err(), "it is loaded");
    isolation::unload(agent).unwrap();
    expect_refusal(&guest);
    isolation::load(agent, "").unwrap();
    // A device that is gone is no longer reported to; the next one is.
    let first = until(agent, "a pass", |now| now.count("passes") > 0);
    agent.unload_balloon_driver().unwrap();
    guest.load_balloon_driver("").unwrap();
    isolation::set(agent, "tracker", "section-bit").unwrap();
    let marked = |now: &Statistics| now.count("pages") >= first.count("pages") + 100 * MIB / 4096;
    until(agent, "the new device", marked);
    isolation::unload(agent).unwrap();
    assert_eq!(guest.splats().unwrap(), Vec::<String>::new());
    guest.quit().unwrap();
}

/// Has the module, which was loaded before, refuse a kernel whose code it does not know.
fn expect_refusal(guest: &LinuxGuest) {
    let agent = guest.agent();
    guest.splats().unwrap();
    let serial = guest.serial().unwrap();
    let site = serial.split("hook at ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    // A probe of someone else changes the very instructions by which the module knows the kernel.
    let (symbol, offset) = site.split_once('+').unwrap();
    agent.load_module(modules::FOREIGN_PROBE, &format!("symbol={symbol} offset={offset}")).unwrap();
    let error = isolation::load(agent, "").unwrap_err();
    let failure = error.downcast_ref::<Failure>().unwrap();
    assert_eq!(failure.errno.as_deref(), Some("ENOEXEC"), "{error:#}");
    guest.splats().unwrap();
    let reason =
        "isolation_reporting: refused: __free_one_page of this build does not end as known";
    let serial = guest.serial().unwrap();
    assert!(serial.contains(reason), "{serial}");
    expect_mainline(guest);
    agent.unload_module(modules::FOREIGN_PROBE).unwrap();
}
