// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench device`: what the daemon costs.
//!
//! Every figure stands beside a yardstick that was measured in the same run, taking turns with it,
//! since absolute times vary from machine to machine.

mod confined;
mod control_latency;
mod give_back;
mod start;
mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use confined::Confined;
use control_latency::ControlLatency;
use give_back::GiveBack;
use guest_driver::ram::Gpa;
use guest_driver::virtio::ring::Buffer;
use hdrhistogram::Histogram;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::thread::Pid;
use serde::Serialize;
use start::{STARTS, Start};
use support::{MIB, Processors, REPORTING, TIMEOUT, attach, pin, ratio, spawn};
use vmm_integration::measure::host::{pss_bytes, wait_until};
use vmm_integration::vmm::qemu;

/// Round trips of each kind, and how many of them in a row before the other kind has its turn.
const ROUND_TRIPS: u32 = 40_000;
const TURN: u32 = 2_000;
const IDLE: Duration = Duration::from_secs(5);
/// Makes this program the other end of the raw ping-pong: stdin is one eventfd, stdout the other.
const PONG: &str = "--pong";
/// Measures nothing but how fast memory goes back, with a word behind it only for the backings of
/// whose name it is part.
const GIVE_BACK: &str = "--give-back";
/// Measures nothing but how long control messages wait.
const CONTROL: &str = "--control";
/// Measures nothing but what the sandbox costs.
const CONFINED: &str = "--confined";

#[derive(Serialize)]
struct Figures {
    round_trip: RoundTrip,
    calls: Calls,
    start: Start,
    confined: Confined,
    idle: Idle,
    idle_attached: Idle,
    control_latency: ControlLatency,
    give_back: GiveBack,
}

/// Nanoseconds.
#[derive(Serialize)]
struct RoundTrip {
    queue_median_ns: u64,
    queue_p99_ns: u64,
    eventfd_median_ns: u64,
    eventfd_p99_ns: u64,
    ratio_median: f64,
    ratio_p99: f64,
}

#[derive(Serialize)]
struct Calls {
    ranges: u64,
    discard_calls: u64,
}

#[derive(Serialize)]
struct Idle {
    pss_bytes: u64,
    seconds: u64,
    context_switches: u64,
    /// System calls that strace has seen; none if there is no strace.
    system_calls: Option<usize>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == PONG) {
        return pong();
    }
    if let Some(at) = args.iter().position(|arg| arg == GIVE_BACK) {
        let only = args.get(at + 1).filter(|arg| !arg.starts_with('-'));
        print!("{}", give_back::measure(only.map(String::as_str))?);
        return Ok(());
    }
    if args.iter().any(|arg| arg == CONTROL) {
        print!("{}", control_latency::measure()?);
        return Ok(());
    }
    if args.iter().any(|arg| arg == CONFINED) {
        print!("{}", confined::measure()?);
        return Ok(());
    }
    let figures = Figures {
        round_trip: round_trip()?,
        calls: calls()?,
        start: start::measure()?,
        confined: confined::measure()?,
        idle: idle(false)?,
        idle_attached: idle(true)?,
        control_latency: control_latency::measure()?,
        give_back: give_back::measure(None)?,
    };
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    Ok(())
}

fn print(figures: &Figures) {
    let trip = &figures.round_trip;
    let us = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e6;
    println!(
        "Queue round trip, kick to used, nothing to discard ({ROUND_TRIPS} each, taking turns)"
    );
    println!("                          median       p99");
    let line = |name, median, p99| {
        println!("  {name:<20} {:8.2} µs {:8.2} µs", us(median), us(p99));
    };
    line("queue", trip.queue_median_ns, trip.queue_p99_ns);
    line("raw eventfd", trip.eventfd_median_ns, trip.eventfd_p99_ns);
    println!(
        "  {:<20} {:8.2}    {:8.2}      goal: at most 2.5",
        "ratio", trip.ratio_median, trip.ratio_p99
    );
    println!("\nOne chain of {} adjacent ranges", figures.calls.ranges);
    println!("  discarding calls     {:8}         goal: 1", figures.calls.discard_calls);
    println!("\nFrom start to listening ({STARTS} starts)");
    let ms = |us: u64| Duration::from_micros(us).as_secs_f64() * 1e3;
    println!("  median               {:8.2} ms", ms(figures.start.median_us));
    println!("  slowest              {:8.2} ms      goal: at most 10", ms(figures.start.max_us));
    print!("\n{}", figures.confined);
    for (name, idle) in [("waiting", &figures.idle), ("attached", &figures.idle_attached)] {
        println!("\nIdle with everything on, {name}, over {} s", idle.seconds);
        println!("  PSS                  {:8} KiB     goal: at most 3072", idle.pss_bytes >> 10);
        println!("  context switches     {:8}         goal: 0", idle.context_switches);
        match idle.system_calls {
            Some(calls) => println!("  system calls         {calls:8}         goal: 0"),
            None => println!("  system calls         not counted, there is no strace here"),
        }
    }
    print!("\n{}", figures.control_latency);
    print!("\n{}", figures.give_back);
}

fn round_trip() -> Result<RoundTrip> {
    let processors = Processors::kept()?;
    let daemon = spawn(&[])?;
    let mut guest = attach(&daemon)?;
    let mut raw = Raw::new()?;
    if processors.are_two() {
        pin(None, 0)?;
        pin(Some(daemon.pid()), 1)?;
        pin(Some(raw.other.id()), 1)?;
    }
    // Less than a page: there is nothing to discard.
    let nothing = [Buffer::writable(Gpa(32 * MIB), 64)];
    let mut queue = Histogram::<u64>::new(3)?;
    let mut eventfd = Histogram::<u64>::new(3)?;
    for turn in 0..=ROUND_TRIPS / TURN {
        for _ in 0..TURN {
            guest.ring(REPORTING)?.add_chain(&nothing)?;
            let start = Instant::now();
            guest.publish(REPORTING)?;
            ensure!(guest.wait_call(REPORTING, TIMEOUT)?, "the queue does not answer");
            let used = guest.ring(REPORTING)?.pop_used()?;
            let elapsed = start.elapsed();
            ensure!(used.is_some(), "notified without a used chain");
            // The first turn warms up.
            if turn > 0 {
                queue.record(nanoseconds(elapsed)?)?;
            }
        }
        for _ in 0..TURN {
            let start = Instant::now();
            raw.ping()?;
            let elapsed = start.elapsed();
            if turn > 0 {
                eventfd.record(nanoseconds(elapsed)?)?;
            }
        }
    }
    let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile);
    Ok(RoundTrip {
        queue_median_ns: at(&queue, 0.5),
        queue_p99_ns: at(&queue, 0.99),
        eventfd_median_ns: at(&eventfd, 0.5),
        eventfd_p99_ns: at(&eventfd, 0.99),
        ratio_median: ratio(at(&queue, 0.5), at(&eventfd, 0.5)),
        ratio_p99: ratio(at(&queue, 0.99), at(&eventfd, 0.99)),
    })
}

fn nanoseconds(duration: Duration) -> Result<u64> {
    Ok(u64::try_from(duration.as_nanos())?)
}

/// Two eventfds and a process that answers one with the other: what no daemon can be faster than.
struct Raw {
    kick: OwnedFd,
    call: OwnedFd,
    other: Child,
}

impl Raw {
    fn new() -> Result<Self> {
        let kick = eventfd(0, EventfdFlags::CLOEXEC)?;
        let call = eventfd(0, EventfdFlags::CLOEXEC)?;
        let other = Command::new(std::env::current_exe()?)
            .arg(PONG)
            .stdin(Stdio::from(kick.try_clone()?))
            .stdout(Stdio::from(call.try_clone()?))
            .spawn()
            .context("cannot start the other end of the ping-pong")?;
        Ok(Self { kick, call, other })
    }

    /// There and back, waiting as the driver does: poll, then read.
    fn ping(&mut self) -> Result<()> {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes())?;
        poll(&mut [PollFd::new(&self.call, PollFlags::IN)], None)?;
        rustix::io::read(&self.call, &mut [0; 8])?;
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

fn pong() -> Result<()> {
    let (mut kick, call) = (io::stdin().lock(), rustix::stdio::stdout());
    let mut count = [0; 8];
    loop {
        kick.read_exact(&mut count)?;
        rustix::io::write(call, &1_u64.to_ne_bytes())?;
    }
}

fn calls() -> Result<Calls> {
    let daemon = spawn(&[])?;
    let mut guest = attach(&daemon)?;
    // As much as goes in one call by default.
    guest.ram().populate(guest_driver::ram::GpaRange::between(Gpa(8 * MIB), Gpa(10 * MIB)))?;
    let report: Vec<Buffer> =
        (0..32).rev().map(|i| Buffer::writable(Gpa(8 * MIB + (i << 16)), 1 << 16)).collect();
    guest.submit_and_wait(REPORTING, &report)?;
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT)?;
    Ok(Calls { ranges: summary.ranges, discard_calls: summary.discard_calls })
}

/// With all that can be turned on, but for the timer of statistics, which has to wake.
fn idle(attached: bool) -> Result<Idle> {
    let folder = tempfile::tempdir()?;
    let control = folder.path().join("control");
    let control = control.to_str().context("a folder that is no text")?;
    let daemon = spawn(&[
        "--control-socket",
        control,
        "--metrics-address=127.0.0.1:0",
        "--statistics",
        "--free-page-hints",
        "--deflate-on-oom",
        "--hugetlb",
    ])?;
    let guest = attached.then(|| attach(&daemon)).transpose()?;
    // Starting is over when every thread sleeps.
    wait_until(TIMEOUT, Duration::from_millis(10), || {
        let states = states(daemon.pid()).map_err(|error| error.to_string())?;
        if states.iter().all(|state| state == "S") { Ok(()) } else { Err(states.join(" ")) }
    })?;
    let pss_bytes = pss_bytes(daemon.pid())?;
    let before = context_switches(daemon.pid())?;
    std::thread::sleep(IDLE);
    let context_switches = context_switches(daemon.pid())? - before;
    let system_calls = system_calls(daemon.pid())?;
    drop(guest);
    Ok(Idle { pss_bytes, seconds: IDLE.as_secs(), context_switches, system_calls })
}

/// A field of the status of each thread of a process.
fn status_fields(pid: u32, name: &str) -> Result<Vec<String>> {
    let mut values = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        values.extend(status.lines().filter_map(|line| {
            let (field, value) = line.split_once(':')?;
            (field == name).then(|| value.split_whitespace().next().unwrap_or_default().to_owned())
        }));
    }
    Ok(values)
}

fn states(pid: u32) -> Result<Vec<String>> {
    status_fields(pid, "State")
}

fn context_switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for name in ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"] {
        for count in status_fields(pid, name)? {
            sum += count.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// The system calls that the process makes while it idles, as strace sees them.
fn system_calls(pid: u32) -> Result<Option<usize>> {
    let Some(mut strace) = strace() else { return Ok(None) };
    let log = tempfile::NamedTempFile::new()?;
    let mut strace = strace
        .args(["-f", "-q", "-o"])
        .arg(log.path())
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start strace")?;
    // It shows for each thread the call that it already sits in, and then whatever comes.
    let threads = states(pid)?.len();
    let seen = || -> Result<usize> { Ok(fs::read_to_string(log.path())?.lines().count()) };
    let traced = wait_until(TIMEOUT, Duration::from_millis(10), || {
        let seen = seen().map_err(|error| error.to_string())?;
        if seen >= threads { Ok(()) } else { Err(format!("{seen} of {threads} threads traced")) }
    });
    std::thread::sleep(IDLE);
    let calls = seen()?;
    rustix::process::kill_process(Pid::from_child(&strace), rustix::process::Signal::INT)?;
    strace.wait()?;
    io::stderr().flush()?;
    Ok(traced.is_ok().then_some(calls - threads))
}

/// strace of this machine, or the one that was unpacked for the guest.
fn strace() -> Option<Command> {
    let own = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    if own.is_ok_and(|status| status.success()) {
        return Some(Command::new("strace"));
    }
    Some(qemu::available().ok()?.strace?.command())
}
