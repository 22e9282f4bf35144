// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Four Linux guests on a host that is too small for them, with the policy and without.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::{Command, Reply};
use rustix::process::Signal;
use tempfile::NamedTempFile;
use vmm_integration::control::ControlSocket;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

use crate::host::Host;

const MIB: u64 = 1 << 20;
const GUESTS: usize = 4;
/// Memory of a guest.
const MEMORY: u64 = 1024 * MIB;
/// What the host has for all of them: the guests have 1.5 times as much.
const HOST: u64 = GUESTS as u64 * MEMORY / 3 * 2;
const ROUNDS: usize = 8;
/// What a guest keeps, and what it uses when it is its turn.
const KEPT: (u32, u64) = (1, 64 * MIB);
const USED: (u32, u64) = (2, 192 * MIB);
/// What each reads of its disk in a round, which stays in its page cache.
const READ: u64 = 640 * MIB;
/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a run came to.
#[derive(Debug, Default)]
struct Run {
    /// Seconds that the guests' work took, the waits between rounds not counted.
    work: f64,
    /// GiB that the host held for the guests, times minutes.
    gib_minutes: f64,
    seconds: f64,
    /// The most that it held, in bytes.
    peak: u64,
    /// Seconds in which it held more than it has.
    over: f64,
    oom_kills: u64,
}

struct Vm {
    guest: LinuxGuest,
    _disk: NamedTempFile,
}

impl Vm {
    fn boot(host: &mut Host, name: &str) -> Self {
        let args = ["--statistics", "--deflate-on-oom", "--name", name];
        let socket = host.daemon(name, &args).socket();
        // Without blocks, so that reading it costs the host nothing.
        let disk = NamedTempFile::new().unwrap();
        disk.as_file().set_len(READ).unwrap();
        let drive = format!("file={},format=raw,if=virtio,readonly=on", disk.path().display());
        let config = GuestConfig {
            memory_bytes: MEMORY,
            cpus: 1,
            balloon: Balloon::VhostUser { socket },
            modules: vec!["kernel/drivers/block/virtio_blk".to_owned()],
            qemu_args: vec!["-drive".to_owned(), drive],
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(&qemu::available().unwrap(), config).unwrap();
        guest.load_balloon_driver("").unwrap();
        guest.agent().load_module("virtio_blk", "").unwrap();
        guest.agent().alloc(KEPT.0, KEPT.1, 1).unwrap();
        Self { guest, _disk: disk }
    }

    fn work(&self, is_busy: bool) {
        let agent = self.guest.agent();
        if is_busy {
            agent.alloc(USED.0, USED.1, 2).unwrap();
            assert_eq!(agent.expect_intact(USED.0).unwrap(), USED.1);
        }
        let read = Command::ReadThrough { path: "/dev/vda".to_owned(), bytes: READ };
        assert_eq!(agent.call(read, PATIENCE).unwrap(), Reply::Done);
        if is_busy {
            agent.free(USED.0).unwrap();
        }
    }
}

fn resident(vms: &[Vm]) -> u64 {
    vms.iter().map(|vm| vm.guest.resident_bytes().unwrap()).sum()
}

fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Ends the watch, also where the work fails.
struct Work<'a>(&'a AtomicBool);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Adds up what the host holds until the work is over.
fn watch(vms: &[Vm], is_over: &AtomicBool) -> Run {
    let (mut run, began) = (Run::default(), Instant::now());
    let mut last = began;
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(LOOK_EVERY);
        let (held, now) = (resident(vms), Instant::now());
        let passed = (now - last).as_secs_f64();
        last = now;
        run.gib_minutes += held as f64 / (1024 * MIB) as f64 * passed / 60.0;
        run.peak = run.peak.max(held);
        run.over += if held > HOST { passed } else { 0.0 };
    }
    run.seconds = began.elapsed().as_secs_f64();
    run
}

fn run(is_steered: bool) -> Run {
    let mut host = Host::new();
    let names: Vec<String> = (0..GUESTS).map(|name| format!("vm{name}")).collect();
    let vms: Vec<Vm> = names.iter().map(|name| Vm::boot(&mut host, name)).collect();
    // This host less what is too much.
    let reserve = (available() + resident(&vms)).saturating_sub(HOST);
    let policy = host.path("policy.toml");
    let rules = format!("[host]\nreserve = {reserve}\nband = '128M'\nperiod = '2s'\n");
    fs::write(&policy, rules).unwrap();
    let hostd = is_steered.then(|| host.hostd(&["--policy", policy.to_str().unwrap()]));
    let is_over = AtomicBool::new(false);
    let (mut run, work) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&vms, &is_over));
        let works = Work(&is_over);
        let mut work = 0.0;
        for round in 0..ROUNDS {
            let began = Instant::now();
            thread::scope(|scope| {
                for (at, vm) in vms.iter().enumerate() {
                    scope.spawn(move || vm.work((round + at).is_multiple_of(GUESTS)));
                }
            });
            work += began.elapsed().as_secs_f64();
            // Guests rest between two rounds, as most do most of the time.
            thread::sleep(Duration::from_secs(10));
        }
        drop(works);
        (watching.join().unwrap(), work)
    });
    run.work = work;
    if let Some(mut hostd) = hostd {
        hostd.signal(Signal::TERM);
        assert_eq!(hostd.wait().code(), Some(0));
        println!("{}", hostd.log());
    }
    for (vm, name) in vms.into_iter().zip(&names) {
        assert_eq!(vm.guest.agent().expect_intact(KEPT.0).unwrap(), KEPT.1);
        let control = ControlSocket::new(&host.path(&format!("{name}.ctl")), PATIENCE);
        let statistics = control.get("/v1/statistics").unwrap();
        run.oom_kills += statistics["sample"]["values"]["oom_kills"].as_u64().unwrap_or(0);
        assert_eq!(vm.guest.quit().unwrap(), "");
    }
    run
}

#[test]
#[ignore = "needs a Linux guest and a full run: cargo xtask test --full"]
fn overcommitted_guests_with_and_without_policy() {
    let runs = [run(false), run(true)];
    for (run, name) in runs.iter().zip(["without", "with"]) {
        println!(
            "{name}: {:.2} GiB min in {:.0} s, mean {:.2} GiB, peak {} MiB of {} MiB, {:.0} s over, \
             work {:.1} s, {} OOM kills",
            run.gib_minutes,
            run.seconds,
            run.gib_minutes * 60.0 / run.seconds,
            run.peak / MIB,
            HOST / MIB,
            run.over,
            run.work,
            run.oom_kills
        );
    }
    let [without, with] = runs;
    println!("slowdown {:.2}", with.work / without.work);
    assert!(without.over > 0.0, "the host is large enough: {without:?}");
    assert!(with.over < without.over / 2.0, "{with:?}, {without:?}");
    assert_eq!((with.oom_kills, without.oom_kills), (0, 0));
}
