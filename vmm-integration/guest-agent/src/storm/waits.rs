// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What processes of a storm wait for, from the kernel's tracepoints of contended locks.
//!
//! A wait has the stack of its begin, whose functions say what waits and for which lock. Where a
//! function takes several locks of a kind, the address tells them apart, if another function takes the
//! same one.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::hugetlb::Wait;

use super::task::NAME;
use crate::system;

const TRACING: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 2] = ["contention_begin", "contention_end"];
/// The lock of a file's tree of VMAs.
const TREE: &str = "i_mmap_rwsem";
/// Of each CPU.
const BUFFER_KIB: &str = "16384";

/// A trace that runs until this is dropped.
pub(super) struct Trace(());

impl Trace {
    /// Begins to trace.
    pub(super) fn start() -> Result<Self> {
        let set = |name: &str, text: &str| system::write_file(&format!("{TRACING}/{name}"), text);
        set("trace_clock", "mono")?;
        set("buffer_size_kb", BUFFER_KIB)?;
        fs::write(format!("{TRACING}/trace"), "").context("emptying the trace")?;
        let ours = format!("comm ~ \"{NAME}*\"");
        for event in EVENTS {
            set(&format!("events/lock/{event}/filter"), &ours)
                .context("expected a kernel with lock:contention_begin, 5.19 or later")?;
        }
        let trace = Self(());
        set("events/lock/contention_begin/trigger", &format!("stacktrace if {ours}"))?;
        for event in EVENTS {
            set(&format!("events/lock/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    /// Ends it, and returns the waits.
    pub(super) fn finish(self) -> Result<Vec<Wait>> {
        drop(self);
        let trace = File::open(format!("{TRACING}/trace")).context("opening the trace")?;
        let waits = read(BufReader::new(trace))?;
        system::write_file(&format!("{TRACING}/buffer_size_kb"), "1024")?;
        Ok(waits)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let set = |name: &str, text: &str| {
            if let Err(error) = system::write_file(&format!("{TRACING}/events/lock/{name}"), text) {
                eprintln!("guest-agent: {error:#}");
            }
        };
        EVENTS.iter().for_each(|event| set(&format!("{event}/enable"), "0"));
        set("contention_begin/trigger", "!stacktrace");
        EVENTS.iter().for_each(|event| set(&format!("{event}/filter"), "0"));
    }
}

/// A wait that has begun.
#[derive(Default)]
struct Begun {
    at: Duration,
    how: &'static str,
    stack: Vec<String>,
}

/// Waits of one kind, and the address of the lock.
type Key = (String, String, &'static str, String);

/// Sums the waits of a trace.
fn read(trace: impl BufRead) -> Result<Vec<Wait>> {
    let mut begun: HashMap<(u32, String), Begun> = HashMap::new();
    let mut latest: HashMap<u32, String> = HashMap::new();
    let mut stack_of: Option<(u32, String)> = None;
    let mut sums: BTreeMap<Key, (u64, Duration, Duration)> = BTreeMap::new();
    for line in trace.lines() {
        let line = line.context("reading the trace")?;
        if let Some(function) = line.trim_start().strip_prefix("=> ") {
            if let Some(begun) = stack_of.as_ref().and_then(|key| begun.get_mut(key)) {
                let name = function.split(['+', ' ']).next().unwrap_or_default();
                begun.stack.push(name.split('.').next().unwrap_or_default().to_owned());
            }
            continue;
        }
        stack_of = None;
        let Some((pid, at, event, rest)) = event(&line) else { continue };
        let address = || rest.split(' ').next().unwrap_or_default().to_owned();
        match event {
            "contention_begin" => {
                let key = (pid, address());
                latest.insert(pid, key.1.clone());
                // A mutex says so twice: as it spins, and as it sleeps.
                begun.entry(key).or_insert_with(|| Begun { at, how: how(rest), stack: Vec::new() });
            }
            "contention_end" => {
                let address = address();
                let Some(begun) = begun.remove(&(pid, address.clone())) else { continue };
                let took = at.saturating_sub(begun.at);
                let key = (by(&begun.stack), site(&begun.stack), begun.how, address);
                let (times, sum, longest) = sums.entry(key).or_default();
                *times += 1;
                *sum += took;
                *longest = (*longest).max(took);
            }
            _ => {
                let key = latest.get(&pid).map(|address| (pid, address.clone()));
                stack_of =
                    key.filter(|key| begun.get(key).is_some_and(|begun| begun.stack.is_empty()));
            }
        }
    }
    Ok(summed(sums))
}

/// Process, time, name and rest of an event, `NAME-PID [CPU] FLAGS SECONDS.MICROS: EVENT: REST`; the
/// event of a stack is `<stack trace>`.
fn event(line: &str) -> Option<(u32, Duration, &str, &str)> {
    let (task, rest) = line.split_once(" [")?;
    let pid = task.trim().rsplit_once('-')?.1.parse().ok()?;
    let (head, rest) = rest.split_once(": ")?;
    let (seconds, micros) = head.rsplit_once(' ')?.1.split_once('.')?;
    let at =
        Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?);
    let (event, rest) = rest.split_once(": ").unwrap_or((rest.trim(), ""));
    Some((pid, at, event, rest))
}

fn how(rest: &str) -> &'static str {
    ["MUTEX", "READ", "WRITE", "SPIN"].into_iter().find(|flag| rest.contains(flag)).map_or(
        "other",
        |flag| match flag {
            "MUTEX" => "mutex",
            "READ" => "read",
            "WRITE" => "write",
            _ => "spin",
        },
    )
}

/// What waits, by the functions through which it came into the kernel.
fn by(stack: &[String]) -> String {
    const KNOWN: [(&str, &str); 12] = [
        ("hugetlb_fault", "fault"),
        ("hugetlbfs_fallocate", "punch"),
        ("copy_process", "fork"),
        ("do_exit", "exit"),
        ("exit_mmap", "exit"),
        ("do_mprotect_pkey", "mprotect"),
        ("do_madvise", "madvise"),
        ("__x64_sys_madvise", "madvise"),
        ("__vm_munmap", "munmap"),
        ("__x64_sys_munmap", "munmap"),
        ("vm_mmap_pgoff", "mmap"),
        ("exc_page_fault", "other fault"),
    ];
    let found = KNOWN.iter().find(|(function, _)| stack.iter().any(|name| name == function));
    found.map_or_else(|| "other".to_owned(), |(_, what)| (*what).to_owned())
}

/// The function that takes the lock: the first that is none of the lock's own.
fn site(stack: &[String]) -> String {
    const OWN: [&str; 14] = [
        "trace_event_",
        "__traceiter_",
        "__bpf_trace_",
        "down_",
        "__down_",
        "rwsem_",
        "mutex_",
        "__mutex_",
        "_raw_spin_",
        "__raw_spin_",
        "native_queued_",
        "__pv_queued_",
        "queued_",
        "do_raw_",
    ];
    let taker = stack.iter().find(|name| !OWN.iter().any(|own| name.starts_with(own)));
    taker.cloned().unwrap_or_else(|| "unknown".to_owned())
}

/// The lock that a function takes so, if it takes one of a kind only.
fn lock(by: &str, site: &str, how: &str) -> Option<&'static str> {
    Some(match (by, site, how) {
        (_, "huge_pmd_share" | "huge_pte_alloc", "read") => TREE,
        (_, "dup_mmap" | "vma_link" | "vma_link_file" | "vma_prepare", "write")
        | (_, "unlink_file_vma" | "unlink_file_vma_batch_process", "write") => TREE,
        (_, site, "write") if site.starts_with("hugetlbfs_file_mmap") => "inode rwsem",
        ("fault" | "punch", _, "mutex") => "fault mutex",
        _ => return None,
    })
}

/// The lock that a function means if no other one takes it. `hugetlb_vma_lock_read` and
/// `hugetlb_vma_lock_write` jump to what takes the lock, so the stack has their callers.
fn likely(by: &str, site: &str, how: &str) -> Option<&'static str> {
    let vma =
        by == "fault" && how == "read" && ["hugetlb_fault", "hugetlb_no_page"].contains(&site);
    vma.then_some("VMA lock")
}

/// The locks that a function may mean, if no address tells.
fn one_of(site: &str, how: &str) -> &'static str {
    match (site, how) {
        ("hugetlbfs_fallocate" | "hugetlbfs_punch_hole", "write") => "inode rwsem or i_mmap_rwsem",
        ("remove_inode_hugepages" | "unmap_vmas" | "__hugetlb_zap_begin", "write") => {
            "VMA lock or i_mmap_rwsem"
        }
        _ => "unknown",
    }
}

fn summed(sums: BTreeMap<Key, (u64, Duration, Duration)>) -> Vec<Wait> {
    let mut known: HashMap<&str, &str> = HashMap::new();
    for tell in [lock, likely] {
        for (by, site, how, address) in sums.keys() {
            if let Some(lock) = tell(by, site, how) {
                known.entry(address).or_insert(lock);
            }
        }
    }
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut waits: BTreeMap<(&str, &str, &str, &str), Wait> = BTreeMap::new();
    for ((by, site, how, address), (times, sum, longest)) in &sums {
        let lock = known.get(address.as_str()).copied();
        let lock = lock.unwrap_or_else(|| one_of(site, how));
        let wait = waits.entry((by, site, how, lock)).or_insert_with(|| Wait {
            by: by.clone(),
            site: site.clone(),
            how: (*how).to_owned(),
            lock: lock.to_owned(),
            times: 0,
            nanoseconds: 0,
            longest_ns: 0,
        });
        wait.times += times;
        wait.nanoseconds += ns(*sum);
        wait.longest_ns = wait.longest_ns.max(ns(*longest));
    }
    let mut waits: Vec<Wait> = waits.into_values().collect();
    waits.sort_by_key(|wait| std::cmp::Reverse(wait.nanoseconds));
    waits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_summed_by_lock() {
        let trace = "\
# tracer: nop
  storm-writer-91      [000] d....    12.000100: contention_begin: 00000000aa (flags=READ)
  storm-writer-91      [000] d....    12.000101: <stack trace>
 => trace_event_raw_event_contention_begin
 => rwsem_down_read_slowpath
 => down_read
 => hugetlb_fault
 => exc_page_fault
  storm-puncher-92     [001] .....    12.000200: contention_begin: 00000000bb (flags=WRITE)
  storm-puncher-92     [001] .....    12.000201: <stack trace>
 => down_write
 => hugetlbfs_fallocate.isra.0
 => vfs_fallocate
  storm-writer-91      [000] .....    12.000350: contention_end: 00000000aa (ret=0)
  storm-forker-93      [000] .....    12.000300: contention_begin: 00000000bb (flags=WRITE)
  storm-forker-93      [000] .....    12.000301: <stack trace>
 => down_write
 => dup_mmap
 => copy_process
  storm-puncher-92     [001] .....    12.000500: contention_end: 00000000bb (ret=0)
  storm-forker-93      [000] .....    12.000900: contention_end: 00000000bb (ret=0)
  storm-writer-91      [000] .....    12.001000: contention_begin: 00000000cc (flags=SPIN|MUTEX)
  storm-writer-91      [000] .....    12.001001: <stack trace>
 => __mutex_lock.constprop.0
 => hugetlb_fault
  storm-writer-91      [000] .....    12.001100: contention_begin: 00000000cc (flags=MUTEX)
  storm-writer-91      [000] .....    12.001101: <stack trace>
 => schedule
  storm-writer-91      [000] .....    12.001500: contention_end: 00000000cc (ret=0)
";
        let waits = read(trace.as_bytes()).unwrap();
        let told: Vec<_> = waits
            .iter()
            .map(|wait| (&*wait.by, &*wait.site, &*wait.how, &*wait.lock, wait.nanoseconds))
            .collect();
        assert_eq!(
            told,
            [
                ("fork", "dup_mmap", "write", "i_mmap_rwsem", 600_000),
                ("fault", "hugetlb_fault", "mutex", "fault mutex", 500_000),
                ("punch", "hugetlbfs_fallocate", "write", "i_mmap_rwsem", 300_000),
                ("fault", "hugetlb_fault", "read", "VMA lock", 250_000),
            ]
        );
    }
}
