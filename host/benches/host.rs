// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench host`: what a host of many daemons costs, and hostd beside them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_driver::ram::GuestRam;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use rustix::process::set_parent_process_death_signal;
use serde::Serialize;
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::{cpu_time, pss_bytes, wait_until};

const HOSTD: &str = env!("CARGO_BIN_EXE_vhost-device-balloon-host");
/// Daemons, each with a frontend, unless `--daemons` says otherwise.
const DAEMONS: usize = 50;
const IDLE: Duration = Duration::from_secs(60);
const SCRAPES: u32 = 20;
const ROUNDS: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Memory of a guest. No page of it is touched.
const MEMORY: u64 = 1 << 30;
/// Policies of a host that never lacks memory, and of one that always does.
const RICH: &str = "[host]\nreserve = '1M'\nband = '1M'\nperiod = '1s'\n";
const POOR: &str = "[host]\nreserve = '1000T'\nperiod = '1s'\n";

#[derive(Serialize)]
struct Figures {
    daemons: usize,
    daemon_pss_bytes: Spread,
    hostd_pss_bytes: u64,
    idle_seconds: u64,
    idle_hostd_ticks: u64,
    idle_daemons_ticks: u64,
    idle_hostd_microseconds: u128,
    idle_hostd_context_switches: u64,
    scrape_microseconds: Spread,
    scrape_bytes: usize,
    scrape_hostd_microseconds: u128,
    scrape_daemons_microseconds: u128,
    rounds: u64,
    round_hostd_microseconds: u128,
    round_daemons_microseconds: u128,
}

/// The least, the median and the most.
#[derive(Serialize)]
struct Spread {
    least: u64,
    median: u64,
    most: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Result<Self> {
        values.sort_unstable();
        let (least, most) =
            (*values.first().context("nothing")?, *values.last().context("nothing")?);
        Ok(Self { least, median: values[values.len() / 2], most })
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let count = args.iter().position(|arg| arg == "--daemons");
    let count = count.and_then(|at| args.get(at + 1)).map_or(Ok(DAEMONS), |text| text.parse())?;
    let figures = measure(count)?;
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    Ok(())
}

fn measure(count: usize) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, RICH)?;
    let mut daemons = Vec::new();
    let mut guests = Vec::new();
    for at in 0..count {
        let name = format!("vm{at:04}");
        let binary = Path::new(HOSTD).with_file_name("vhost-device-balloon");
        let daemon = DaemonProcess::spawn_controlled(
            &binary,
            ["--statistics", "--deflate-on-oom", "--name", &name],
        )?;
        symlink(daemon.control_socket(), folder.path().join(format!("{name}.ctl")))?;
        guests.push(Guest::attach(&daemon.socket())?);
        daemons.push(daemon);
    }
    let hostd = Hostd::start(folder.path(), &policy)?;
    hostd.wait_until(|view| view["guests"].as_array().map(Vec::len) == Some(count))?;
    hostd.scrape()?;

    // What it costs while it has no work.
    let before = (ticks(hostd.pid())?, sum(&daemons, ticks)?);
    let (time, switches) = (cpu_time(hostd.pid())?, context_switches(hostd.pid())?);
    thread::sleep(IDLE);
    let after = (ticks(hostd.pid())?, sum(&daemons, ticks)?);
    let idle_hostd_microseconds = (cpu_time(hostd.pid())? - time).as_micros();
    let idle_hostd_context_switches = context_switches(hostd.pid())? - switches;
    let pss: Result<Vec<u64>> = daemons.iter().map(|daemon| pss_bytes(daemon.pid())).collect();
    let (daemon_pss_bytes, hostd_pss_bytes) = (Spread::of(pss?)?, pss_bytes(hostd.pid())?);

    // A scrape.
    let spent = spent(&hostd, &daemons)?;
    let (mut times, mut page) = (Vec::new(), String::new());
    for _ in 0..SCRAPES {
        let began = Instant::now();
        page = hostd.scrape()?;
        times.push(u64::try_from(began.elapsed().as_micros())?);
    }
    let scraped = self::spent(&hostd, &daemons)?;
    let per_scrape = |now: u128, then: u128| (now - then) / u128::from(SCRAPES);
    let up = page.matches("\nballoon_host_daemon_up{").count();
    ensure!(up == count && !page.contains("daemon_up{vm=\"vm0000\"} 0"), "{up} of {count}: {page}");

    // Rounds of the policy.
    fs::write(&policy, POOR)?;
    let rounds = |view: &Value| view["rounds"].as_u64().unwrap_or(0);
    let first = rounds(&hostd.wait_until(|view| rounds(view) > 0)?);
    let start = self::spent(&hostd, &daemons)?;
    let last = rounds(&hostd.wait_until(|view| rounds(view) >= first + ROUNDS)?);
    let end = self::spent(&hostd, &daemons)?;
    let view = hostd.wait_until(|_| true)?;
    let silent = view["guests"].to_string().matches("\"error\":\"").count();
    ensure!(silent == 0, "{silent} guests did not answer: {view:#}");
    let per_round = |now: u128, then: u128| (now - then) / u128::from(last - first);
    drop(guests);
    Ok(Figures {
        daemons: count,
        daemon_pss_bytes,
        hostd_pss_bytes,
        idle_seconds: IDLE.as_secs(),
        idle_hostd_ticks: after.0 - before.0,
        idle_daemons_ticks: after.1 - before.1,
        idle_hostd_microseconds,
        idle_hostd_context_switches,
        scrape_microseconds: Spread::of(times)?,
        scrape_bytes: page.len(),
        scrape_hostd_microseconds: per_scrape(scraped.0, spent.0),
        scrape_daemons_microseconds: per_scrape(scraped.1, spent.1),
        rounds: last - first,
        round_hostd_microseconds: per_round(end.0, start.0),
        round_daemons_microseconds: per_round(end.1, start.1),
    })
}

fn print(figures: &Figures) {
    let Figures { daemons, idle_seconds, rounds, .. } = figures;
    let kib = |bytes: u64| bytes >> 10;
    let pss = &figures.daemon_pss_bytes;
    println!("{daemons} daemons, each with a frontend, and hostd with a policy");
    println!(
        "  PSS of a daemon        {:8} KiB (median; {} to {})",
        kib(pss.median),
        kib(pss.least),
        kib(pss.most)
    );
    println!("  PSS of hostd           {:8} KiB", kib(figures.hostd_pss_bytes));
    println!("Idle for {idle_seconds} s, the host has room");
    println!("  ticks of hostd         {:8}", figures.idle_hostd_ticks);
    println!("  ticks of all daemons   {:8}", figures.idle_daemons_ticks);
    println!("  CPU of hostd           {:8} us", figures.idle_hostd_microseconds);
    println!("  its context switches   {:8}", figures.idle_hostd_context_switches);
    let times = &figures.scrape_microseconds;
    println!("A scrape of hostd, {SCRAPES} times");
    println!(
        "  time                   {:8} us (median; {} to {})",
        times.median, times.least, times.most
    );
    println!("  page                   {:8} KiB", figures.scrape_bytes >> 10);
    println!("  CPU of hostd           {:8} us", figures.scrape_hostd_microseconds);
    println!("  CPU of all daemons     {:8} us", figures.scrape_daemons_microseconds);
    println!("A round of the policy, {rounds} times: all guests asked, all leases renewed");
    println!("  CPU of hostd           {:8} us", figures.round_hostd_microseconds);
    println!("  CPU of all daemons     {:8} us", figures.round_daemons_microseconds);
}

/// CPU time of hostd and of all daemons, in microseconds.
fn spent(hostd: &Hostd, daemons: &[DaemonProcess]) -> Result<(u128, u128)> {
    let time = |pid| Ok(u64::try_from(cpu_time(pid)?.as_micros())?);
    Ok((u128::from(time(hostd.pid())?), u128::from(sum(daemons, time)?)))
}

fn sum(daemons: &[DaemonProcess], of: impl Fn(u32) -> Result<u64>) -> Result<u64> {
    daemons.iter().try_fold(0, |sum, daemon| Ok(sum + of(daemon.pid())?))
}

/// Ticks of the clock that the kernel has charged a process with.
fn ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).context(path)?;
    // The name may have spaces, and ends with the last parenthesis.
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field =
        |at: usize| fields.get(at).context("too short")?.parse::<u64>().context("no number");
    Ok(field(11)? + field(12)?)
}

fn context_switches(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).context(path)?;
    let lines = text.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    lines.map(|(_, count)| Ok(count.trim().parse::<u64>()?)).sum()
}

/// hostd, which ends with this program.
struct Hostd {
    child: Child,
    socket: PathBuf,
}

impl Hostd {
    fn start(folder: &Path, policy: &Path) -> Result<Self> {
        let socket = folder.join("hostd.sock");
        let mut command = Command::new(HOSTD);
        command.arg("hostd").arg("--sockets").arg(folder).arg("--socket").arg(&socket);
        command.arg("--policy").arg(policy).stderr(Stdio::null());
        // SAFETY: one system call, which neither allocates nor takes a lock.
        unsafe {
            use std::os::unix::process::CommandExt;
            let signal = rustix::process::Signal::KILL;
            command.pre_exec(move || Ok(set_parent_process_death_signal(Some(signal))?));
        }
        let hostd = Self { child: command.spawn()?, socket };
        wait_until(PATIENCE, LOOK_EVERY, || match hostd.socket.exists() {
            true => Ok(()),
            false => Err("hostd does not listen".to_owned()),
        })?;
        Ok(hostd)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The body of an answer.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = ControlSocket::new(&self.socket, PATIENCE).connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(body.to_owned())
    }

    fn scrape(&self) -> Result<String> {
        self.get("/metrics")
    }

    fn wait_until(&self, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(PATIENCE, Duration::from_millis(200), || {
            let view = self.get("/v1/host").map_err(|error| error.to_string())?;
            let view: Value = serde_json::from_str(&view).map_err(|error| error.to_string())?;
            if holds(&view) { Ok(view) } else { Err(view.to_string()) }
        })
    }
}

impl Drop for Hostd {
    fn drop(&mut self) {
        // Both fail only when it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frontend whose driver sends statistics when it is asked.
struct Guest {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Guest {
    fn attach(socket: &Path) -> Result<Self> {
        let ram = Ram::new(&RamLayout::flat(MEMORY, Backing::Memfd))?;
        let mut driver = Attachment::connect(socket, &ram, AttachOptions::default())?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = Some(thread::spawn(move || -> Result<()> {
            let queue = driver.index(BalloonQueue::Stats).context("no queue of statistics")?;
            driver.use_balloon()?;
            send(&mut driver, queue)?;
            while !over.load(Ordering::Relaxed) {
                if driver.wait_used(queue, Duration::from_secs(1))?.is_some() {
                    send(&mut driver, queue)?;
                }
            }
            Ok(())
        }));
        Ok(Self { is_over, thread })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // What went wrong shows in the figures: its guest is silent.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Half of the memory is available (tags 5 and 6 of virtio 1.3, 5.5.6.3).
fn send(driver: &mut Attachment, queue: u16) -> Result<()> {
    let value = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let bytes = [value(5, MEMORY), value(6, MEMORY / 2)].concat();
    let at = driver.scratch().start();
    driver.ram().write(at, &bytes)?;
    driver.ring(queue)?.add_chain(&[Buffer::readable(at, u32::try_from(bytes.len())?)])?;
    driver.publish(queue)?;
    Ok(())
}
