// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! hostd carries out a policy on real daemons.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openmetrics_parser::openmetrics::parse_openmetrics;
use rustix::process::Signal;
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::measure::cgroup::MemoryLimit;
use vmm_integration::measure::host::wait_until;

use crate::guest::{Guest, MEMORY};
use crate::host::{Host, Hostd, PATIENCE};

/// A host that always lacks memory.
const POOR: &str = "[host]\nreserve = '1000T'\nperiod = '1s'\n";
/// A host that never does.
const RICH: &str = "[host]\nreserve = '1M'\nband = '1M'\nperiod = '1s'\n";
/// The leases of both.
const LEASE: Duration = Duration::from_secs(6);

/// A host with a policy.
struct Steered {
    host: Host,
    policy: PathBuf,
}

impl Steered {
    fn new(policy: &str) -> Self {
        let host = Host::new();
        let path = host.path("policy.toml");
        fs::write(&path, policy).unwrap();
        Self { host, policy: path }
    }

    /// A VM with its daemon.
    fn guest(&mut self, vm: &str) -> Guest {
        let socket = self.host.daemon(vm, &["--statistics", "--deflate-on-oom"]).socket();
        Guest::attach(socket)
    }

    fn hostd(&self, args: &[&str]) -> Hostd {
        self.host.hostd(&[&["--policy", self.policy.to_str().unwrap()], args].concat())
    }

    /// A control group in which no task ever waits.
    fn calm(&self) -> PathBuf {
        let group = self.host.path("group");
        fs::create_dir(&group).unwrap();
        let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let files = [
            ("max", "max\n"),
            ("current", "0\n"),
            ("stat", "inactive_file 0\n"),
            ("pressure", pressure),
        ];
        for (file, text) in files {
            fs::write(group.join(format!("memory.{file}")), text).unwrap();
        }
        group
    }

    fn target(&self, vm: &str) -> Value {
        let path = self.host.path(&format!("{vm}.ctl"));
        ControlSocket::new(&path, PATIENCE).get("/v1/target").unwrap()
    }

    fn wait_for_target(&self, vm: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait_until(PATIENCE, Duration::from_millis(5), || {
            let target = self.target(vm);
            if holds(&target) { Ok(target) } else { Err(format!("{vm} is not {what}: {target}")) }
        })
        .unwrap()
    }

    fn wait_for_lease(&self, vm: &str) -> Value {
        self.wait_for_target(vm, "leased", |target| target["lease_left_seconds"].is_number())
    }

    fn wait_for_base(&self, vm: &str) -> Value {
        self.wait_for_target(vm, "at its base", |target| target["lease_left_seconds"].is_null())
    }
}

#[test]
fn guests_are_taken_from_and_let_go() {
    let mut steered = Steered::new(POOR);
    let (guest, _other) = (steered.guest("a"), steered.guest("b"));
    let mut hostd = steered.hostd(&[]);
    let leased = |view: &Value| (0..2).all(|at| view["guests"][at]["leave_bytes"].is_number());
    let view = hostd.wait_until("leased", leased);
    let target = steered.target("a");
    assert!(target["bytes"].as_u64() > Some(0) && target["base_bytes"] == 0, "{target}");
    let shown = &view["guests"][0];
    assert_eq!((&view["state"], &shown["name"]), (&"engaged".into(), &"a".into()));
    assert_eq!((&shown["memory_bytes"], &shown["base_bytes"]), (&MEMORY.into(), &MEMORY.into()));
    assert!(shown["floor_bytes"].as_u64() >= Some(MEMORY / 2), "{shown}");
    assert!(shown["sample_age_seconds"].as_f64() < Some(4.0), "{shown}");
    let page = hostd.page();
    assert!(page.contains("balloon_host_leases 2\n"), "{page}");
    assert!(page.contains("balloon_host_orders_total{reason=\"taken\"} "), "{page}");
    // The reader does not know that a histogram may have a unit.
    let page = page.replace("# UNIT balloon_chain_seconds seconds\n", "");
    parse_openmetrics(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));

    guest.says.oom_kills.store(1, Ordering::Relaxed);
    let view = hostd.wait_until("let go", |view| view["guests"][0]["leave_bytes"].is_null());
    assert_eq!(view["guests"][0]["why"], "oom_kill", "{view:#}");
    assert_eq!(steered.target("a")["bytes"], 0);
    hostd.wait_for("a: lease ended (oom_kill)");

    assert!(steered.target("b")["bytes"].as_u64() > Some(0));
    hostd.signal(Signal::TERM);
    assert_eq!(hostd.wait().code(), Some(0), "{}", hostd.log());
    // It was told before hostd ended.
    let target = steered.target("b");
    assert!(target["bytes"] == 0 && target["lease_left_seconds"].is_null(), "{target}");
}

#[test]
fn lease_of_a_killed_hostd_runs_out() {
    let mut steered = Steered::new(POOR);
    let _guest = steered.guest("a");
    let mut hostd = steered.hostd(&[]);
    steered.wait_for_lease("a");
    hostd.kill();
    let left = Instant::now();
    assert!(steered.target("a")["bytes"].as_u64() > Some(0));
    steered.wait_for_base("a");
    assert!(left.elapsed() < LEASE + Duration::from_secs(2), "{:?}", left.elapsed());
    assert_eq!(steered.target("a")["bytes"], 0);
    // The next one may begin at once.
    steered.hostd(&[]);
}

#[test]
fn silent_guest_is_let_go_and_others_are_steered() {
    let mut steered = Steered::new(POOR);
    let (silent, _other) = (steered.guest("silent"), steered.guest("other"));
    for vm in ["hung1", "hung2"] {
        steered.host.impostor(vm, |mut stream| drop(stream.read_to_end(&mut Vec::new())));
    }
    steered.host.impostor("gone", drop);
    let hostd = steered.hostd(&[]);
    steered.wait_for_lease("silent");
    silent.says.is_silent.store(true, Ordering::Relaxed);
    steered.wait_for_base("silent");
    // It is still steered, and was never without.
    assert!(steered.target("other")["lease_left_seconds"].as_f64() > Some(1.0));
    let view = hostd.view();
    let guest = |vm: &str| {
        let guests = view["guests"].as_array().unwrap();
        guests.iter().find(|guest| guest["name"] == vm).unwrap().clone()
    };
    assert_eq!(guest("silent")["why"], "no_sample", "{view:#}");
    assert!(guest("silent")["error"].as_str().unwrap().contains("statistics"), "{view:#}");
    assert!(guest("hung1")["error"].as_str().unwrap().contains("did not answer"), "{view:#}");
    assert!(guest("gone")["error"].is_string() && guest("other")["error"].is_null(), "{view:#}");
    // A guest that speaks again is steered again.
    silent.says.is_silent.store(false, Ordering::Relaxed);
    steered.wait_for_lease("silent");
}

#[test]
fn guests_of_a_host_with_room_are_not_woken() {
    let mut steered = Steered::new(RICH);
    let guest = steered.guest("a");
    // Other tests may make this machine wait for memory.
    let calm = steered.calm();
    let hostd = steered.hostd(&["--cgroup", calm.to_str().unwrap()]);
    for _ in 0..3 {
        hostd.signal(Signal::HUP);
        hostd.wait_for("relaxed");
    }
    let view = hostd.wait_until("found", |view| view["guests"][0]["name"] == "a");
    assert_eq!((&view["rounds"], &view["state"]), (&0.into(), &"relaxed".into()));
    assert_eq!(guest.asked(), 0);
    // A policy that needs the guest is noticed without a signal.
    fs::write(&steered.policy, POOR).unwrap();
    hostd.wait_for("engaged");
    steered.wait_for_lease("a");
}

/// Tasks wait for memory in a control group that is too small for what they write.
#[test]
#[ignore = "needs a memory limit and a full run: cargo xtask test --full"]
fn pressure_is_noticed_at_once() {
    let steered = Steered::new(RICH);
    let hostd = steered.hostd(&[]);
    hostd.wait_for("relaxed");
    let limit = MemoryLimit::new(64 << 20).unwrap();
    let file = steered.host.path("file");
    let began = Instant::now();
    while !hostd.log().contains("engaged") {
        assert!(began.elapsed() < PATIENCE, "{}", hostd.log());
        // It begins once it is in the group.
        let write = "read line && exec dd if=/dev/zero of=\"$0\" bs=1M count=200 2>/dev/null";
        let mut writers = Vec::from([1, 2, 3].map(|at| {
            let mut command = Command::new("sh");
            command.args(["-c", write]).arg(file.with_extension(at.to_string()));
            command.stdin(Stdio::piped()).spawn().unwrap()
        }));
        for writer in &mut writers {
            limit.add(writer.id()).unwrap();
            writer.stdin.take().unwrap().write_all(b"\n").unwrap();
        }
        assert!(writers.iter_mut().all(|writer| writer.wait().unwrap().success()));
    }
}

#[test]
fn policy_that_is_refused_leaves_the_old_one() {
    let steered = Steered::new(RICH);
    let hostd = steered.hostd(&[]);
    let refused =
        |view: &Value| view["policy"]["refused"].as_str().is_some_and(|why| why.contains("reserv"));
    fs::write(&steered.policy, "[host]\nreserv = 1\n").unwrap();
    hostd.wait_until("refused", refused);
    hostd.wait_for("the policy before it holds");
    assert!(hostd.page().contains("balloon_host_policy_refused 1\n"));
    hostd.signal(Signal::HUP);
    // Replaced as editors and Kubernetes do.
    let new = steered.host.path("new");
    fs::write(&new, RICH).unwrap();
    fs::rename(&new, &steered.policy).unwrap();
    hostd.wait_until("read", |view| view["policy"]["refused"].is_null());
    fs::remove_file(&steered.policy).unwrap();
    hostd.wait_until("gone", |view| view["policy"]["refused"].is_string());
    assert_eq!(hostd.view()["state"], "relaxed");
}

#[test]
fn policy_that_is_refused_at_the_start_ends_hostd() {
    let steered = Steered::new("[guest]\nshares = 0\n");
    let policy = steered.policy.to_str().unwrap();
    let mut hostd = Hostd::start(steered.host.dir.path(), &["--policy", policy]);
    assert_eq!(hostd.wait().code(), Some(1));
    hostd.wait_for("guest.shares must be from 1 to 10000, got 0");
}

#[test]
fn dry_run_decides_beside_another_and_sends_nothing() {
    let mut steered = Steered::new(POOR);
    let _guest = steered.guest("a");
    let dry = steered.hostd(&["--dry-run"]);
    let view = dry.wait_until("decided", |view| view["guests"][0]["leave_bytes"].is_number());
    assert!(view["dry_run"] == true && view["orders"].as_object().unwrap().is_empty(), "{view:#}");
    assert_eq!(steered.target("a")["bytes"], 0);
    dry.wait_for("dry run: a: lease of ");
    // One that sends may run beside it, and no second one.
    let policy = steered.policy.to_str().unwrap();
    let start = |socket| Hostd::start_at(&steered.host, socket, &["--policy", policy]);
    let real = start("real.sock");
    real.wait_for("listening on ");
    let mut second = start("second.sock");
    assert_eq!(second.wait().code(), Some(1));
    second.wait_for("another hostd steers the daemons of");
}
