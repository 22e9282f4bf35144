// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each allocation of a session fails once: a daemon that cannot go on ends, as by SIGKILL. Its keeper starts the
//! next one, and the guest loses nothing.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange, GuestRam as _};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::KeptDaemon;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
/// How long a step may take: a daemon that ends soon is followed after some milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the program logs when its allocation fails.
const FAILS: &str = "this allocation fails";
/// What its keeper logs when it ends.
const NEXT: &str = "starting another";
/// A run that is not full tries one of so many: coprime to what may repeat in a session.
const STRIDE: usize = 101;
/// More than a session has.
const MOST: usize = 20_000;

/// What became of the daemon of which an allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Became {
    /// It did not serve, and its keeper ended.
    NeverServed,
    /// The next one went on, and the VMM saw nothing.
    Followed,
    /// The VMM had to connect again.
    ConnectedAgain,
    /// It went on.
    WentOn,
    /// It ended on its way out, when the VMM was gone.
    EndedLast,
}

/// Guest memory: some that is in use, and some that is reported.
struct Memory {
    ram: Ram,
    used: GpaRange,
    free: GpaRange,
}

impl Memory {
    fn new() -> Self {
        let ram = Ram::new(&RamLayout::flat(16 * MIB, Backing::Memfd)).unwrap();
        let range = |start, bytes| GpaRange::new(Gpa(start), bytes).unwrap();
        let (used, free) = (range(4 * MIB, 4 * MIB), range(8 * MIB, 2 * MIB));
        ram.write_pattern(used, 7).unwrap();
        Self { ram, used, free }
    }
}

/// Uses every part of the daemon once.
fn serve(kept: &KeptDaemon, memory: &Memory) -> Result<()> {
    let options = AttachOptions { timeout: PATIENCE, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&kept.keeper().socket(), &memory.ram, options)?;
    ensure!(guest.given_back(memory.free)?, "a report was returned and its memory kept");
    let list = guest.scratch().start();
    memory.ram.write(list, &(12 * MIB / 4096).to_le_bytes()[..4])?;
    for queue in [BalloonQueue::Inflate, BalloonQueue::Deflate] {
        let queue = guest.index(queue).context("a queue is missing")?;
        guest.submit_and_wait(queue, &[Buffer::readable(list, 4)])?;
    }
    let control = ControlSocket::new(&kept.keeper().control_socket(), PATIENCE);
    let pin = "{\"address\":0,\"bytes\":4096}";
    let requests = [
        ("GET", "/v1/status", ""),
        ("GET", "/metrics", ""),
        ("PUT", "/v1/target", "{\"bytes\":1048576}"),
        ("PUT", "/v1/pins", pin),
        ("POST", "/v1/pause", ""),
        ("POST", "/v1/resume", ""),
        ("DELETE", "/v1/pins", pin),
        ("PUT", "/v1/target", "{\"bytes\":0}"),
    ];
    for (method, path, body) in requests {
        // The client of a daemon that ends asks the next one.
        let answer = control.ask(method, path, body).or_else(|_| control.ask(method, path, body));
        let status = answer?.status;
        ensure!(matches!(status, 200 | 404), "{method} {path}: {status}");
    }
    ensure!(guest.given_back(memory.free)?, "a report was returned and its memory kept");
    guest.stop()?;
    Ok(())
}

/// Whether the keeper has ended, after a daemon that never said that it is ready: it may have listened by then.
fn is_over(kept: &KeptDaemon) -> bool {
    let stat = format!("/proc/{}/stat", kept.keeper().pid());
    let until = Instant::now() + PATIENCE;
    while !kept.keeper().log().contains(NEXT) && Instant::now() < until {
        if fs::read_to_string(&stat).unwrap().contains(") Z ") {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// Has the allocation with this number fail; `None` if there is none.
fn fail(number: usize) -> Option<Became> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("number");
    fs::write(&file, number.to_string()).unwrap();
    let env = vec![("STARVED_BY".into(), file.into())];
    let starved = Path::new(env!("CARGO_BIN_EXE_starved"));
    let Ok(kept) = KeptDaemon::spawn_with(starved, ["--statistics", "--free-page-hints"], env)
    else {
        return Some(Became::NeverServed);
    };
    let memory = Memory::new();
    let served = serve(&kept, &memory);
    memory.ram.verify_pattern(memory.used, 7).expect("memory in use was lost");
    let log = kept.keeper().log();
    if let Err(error) = &served {
        assert!(log.contains(FAILS), "allocation {number}: {error:#}\n{log}");
        if is_over(&kept) {
            return Some(Became::NeverServed);
        }
        let again = serve(&kept, &memory);
        memory.ram.verify_pattern(memory.used, 7).expect("memory in use was lost");
        again.unwrap_or_else(|error| panic!("allocation {number}: {error:#}\n{log}"));
    }
    let started = kept.keeper().log().contains(NEXT);
    let (log, ended_well) = match kept.end() {
        Ok(log) => (log, true),
        Err(error) => (format!("{error:#}"), false),
    };
    let fails = log.contains(FAILS);
    assert!(ended_well || fails && !started, "allocation {number}: {log}");
    Some(match served {
        Err(_) => Became::ConnectedAgain,
        Ok(()) if started => Became::Followed,
        Ok(()) if !fails => return None,
        Ok(()) if ended_well => Became::WentOn,
        Ok(()) => Became::EndedLast,
    })
}

/// Has one of `stride` allocations fail at a time; returns their numbers.
fn each(stride: usize) -> BTreeMap<Became, Vec<usize>> {
    let mut became: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for number in (1..MOST).step_by(stride) {
        let Some(how) = fail(number) else { break };
        became.entry(how).or_default().push(number);
    }
    let tried: usize = became.values().map(Vec::len).sum();
    println!("{tried} allocations");
    for (how, numbers) in &became {
        println!("{how:?}: {}, the first is number {}", numbers.len(), numbers[0]);
    }
    assert!(tried * stride < MOST, "a session has more allocations");
    became
}

#[test]
fn guest_loses_nothing_by_a_failed_allocation() {
    let became = each(STRIDE);
    assert!(became.contains_key(&Became::NeverServed) && became.contains_key(&Became::Followed));
}

#[test]
#[ignore = "needs a full run: cargo xtask test --full"]
fn guest_loses_nothing_by_any_failed_allocation() {
    each(1);
}
