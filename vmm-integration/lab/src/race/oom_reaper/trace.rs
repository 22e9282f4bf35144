// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel's tracing says about a kill, the reaper, and reports.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vmm_integration::linux_guest::AgentClient;

const TRACING: &str = "/sys/kernel/tracing";
const REAPER: [&str; 4] =
    ["mark_victim", "start_task_reaping", "finish_task_reaping", "skip_task_reaping"];
/// A range that a notifier of KVM drops.
const UNMAPPED: &str = "kvm_unmap_hva_range";
const BEGIN: &str = "report_begin";
const END: &str = "report_end";
/// Returns when the device has acknowledged.
const REPORTS: &str = "virtio_balloon:virtballoon_free_page_report";

/// Begins to trace. The modules must be loaded.
pub(super) fn begin(agent: &AgentClient, kvm: bool, reports: bool) -> Result<()> {
    let set = |file: &str, text: &str| agent.write_file(&format!("{TRACING}/{file}"), text);
    set("trace_clock", "mono")?;
    for event in REAPER {
        set(&format!("events/oom/{event}/enable"), "1")?;
    }
    if kvm {
        // Compaction has KVM drop page after page.
        set(&format!("events/kvm/{UNMAPPED}/filter"), "comm == \"oom_reaper\"")?;
        set(&format!("events/kvm/{UNMAPPED}/enable"), "1")?;
    }
    if reports {
        set("kprobe_events", &format!("p:{BEGIN} {REPORTS}"))?;
        set("kprobe_events", &format!("r:{END} {REPORTS}"))?;
        set("events/kprobes/enable", "1")?;
    }
    Ok(())
}

/// Forgets what was traced.
pub(super) fn forget(agent: &AgentClient) -> Result<()> {
    agent.write_file(&format!("{TRACING}/trace"), "")
}

/// What was traced since.
pub(super) fn read(agent: &AgentClient, pid: u32) -> Result<Traced> {
    Traced::of(&agent.read_file(&format!("{TRACING}/trace"))?, pid)
}

/// The events of one victim, with times since the guest's boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Traced {
    /// When it was killed.
    pub(super) killed: Duration,
    /// When each attempt began that had the lock.
    pub(super) starts: Vec<Duration>,
    /// When each of them ended.
    pub(super) ends: Vec<Duration>,
    /// When each attempt failed to take the lock.
    pub(super) skips: Vec<Duration>,
    /// Ranges that KVM dropped for the reaper.
    pub(super) unmapped_ranges: u64,
    /// Bytes in them.
    pub(super) unmapped_bytes: u64,
    /// Whether the driver waited for an acknowledgement at the kill.
    pub(super) in_flight_at_kill: bool,
    /// The same at the first attempt.
    pub(super) in_flight_at_reaping: bool,
    /// Reports that ended.
    pub(super) reports: u64,
}

impl Traced {
    /// # Errors
    /// If the trace has no kill of this process.
    fn of(text: &str, pid: u32) -> Result<Self> {
        let lines: Vec<Line<'_>> = text.lines().filter_map(Line::of).collect();
        let of_pid = |line: &&Line<'_>| line.number("pid=").is_some_and(|of| of == u64::from(pid));
        let times = |event: &str| -> Vec<Duration> {
            let of_event = lines.iter().filter(|line| line.event == event);
            of_event.filter(of_pid).map(|line| line.at).collect()
        };
        let killed = times("mark_victim").first().copied();
        let killed = killed.with_context(|| format!("no kill of {pid} in the trace {text:?}"))?;
        let mut traced = Self {
            killed,
            starts: times("start_task_reaping"),
            ends: times("finish_task_reaping"),
            skips: times("skip_task_reaping"),
            ..Self::default()
        };
        ensure!(
            traced.starts.len() == traced.ends.len(),
            "{} attempts began and {} ended",
            traced.starts.len(),
            traced.ends.len()
        );
        for line in lines.iter().filter(|line| line.event == UNMAPPED && line.by("oom_reaper")) {
            traced.unmapped_ranges += 1;
            traced.unmapped_bytes +=
                line.range_bytes().with_context(|| format!("{:?}", line.text))?;
        }
        traced.in_flight_at_kill = in_flight(&lines, killed);
        traced.in_flight_at_reaping =
            traced.first_attempt().is_some_and(|attempt| in_flight(&lines, attempt));
        traced.reports = lines.iter().filter(|line| line.event == END).count() as u64;
        Ok(traced)
    }

    /// Attempts of the reaper.
    pub(super) fn attempts(&self) -> u64 {
        (self.starts.len() + self.skips.len()) as u64
    }

    pub(super) fn first_attempt(&self) -> Option<Duration> {
        self.starts.iter().chain(&self.skips).min().copied()
    }

    /// When the last attempt ended.
    pub(super) fn last_end(&self) -> Option<Duration> {
        self.ends.iter().chain(&self.skips).max().copied()
    }

    /// How long the reaper held the lock.
    pub(super) fn reaping(&self) -> Duration {
        self.starts.iter().zip(&self.ends).map(|(start, end)| end.saturating_sub(*start)).sum()
    }
}

/// Whether a report was in flight: the last before that time began, or the first after it ends one of
/// before the trace.
fn in_flight(lines: &[Line<'_>], at: Duration) -> bool {
    let reports = || lines.iter().filter(|line| line.event == BEGIN || line.event == END);
    match reports().rfind(|line| line.at <= at) {
        Some(line) => line.event == BEGIN,
        None => reports().next().is_some_and(|line| line.event == END),
    }
}

/// A line of the trace: `TASK-PID [CPU] FLAGS SECONDS.MICROSECONDS: EVENT: TEXT`.
struct Line<'a> {
    task: &'a str,
    at: Duration,
    event: &'a str,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (before, rest) = line.split_once(": ")?;
        let (event, text) = rest.split_once(": ")?;
        let (seconds, micros) = before.rsplit_once(' ')?.1.split_once('.')?;
        let at = Duration::from_secs(seconds.parse().ok()?)
            + Duration::from_micros(micros.parse().ok()?);
        Some(Self { task: before.split_whitespace().next()?, at, event, text })
    }

    /// Whether a task of this name is behind it.
    fn by(&self, name: &str) -> bool {
        self.task.rsplit_once('-').is_some_and(|(task, _)| task == name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let rest = self.text.split_once(name)?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    /// Of a text that ends in `START -- END`.
    fn range_bytes(&self) -> Option<u64> {
        let (before, end) = self.text.split_once(" -- ")?;
        let address = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16);
        address(end).ok()?.checked_sub(address(before.rsplit_once(' ')?.1).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
     kworker/0:1-20      [000] .....     9.000000: report_begin: (virtballoon_free_page_report+0x0/0x110 [virtio_balloon])
             exe-147     [001] .....    10.000000: mark_victim: pid=142 comm=exe total-vm=1kB
     kworker/0:1-20      [000] .....    11.000000: report_end: (page_reporting_cycle+0x5/0x9 <- virtballoon_free_page_report)
      oom_reaper-33      [000] .....    12.000000: skip_task_reaping: pid=142
      oom_reaper-33      [000] .....    12.100000: start_task_reaping: pid=142
      oom_reaper-33      [000] .....    12.110000: kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0000000000 -- 0x7f0000200000
      oom_reaper-33      [000] .....    12.150000: finish_task_reaping: pid=142
             exe-150     [000] .....    12.200000: kvm_unmap_hva_range: mmu notifier unmap range: 0x7f0000000000 -- 0x7f0000200000
      oom_reaper-33      [000] .....    13.000000: start_task_reaping: pid=147
";

    #[test]
    fn trace_of_a_victim_has_its_attempts() {
        let traced = Traced::of(TRACE, 142).unwrap();
        let ms = Duration::from_millis;
        assert_eq!((traced.killed, traced.attempts()), (ms(10_000), 2));
        assert_eq!(traced.first_attempt(), Some(ms(12_000)));
        assert_eq!((traced.last_end(), traced.reaping()), (Some(ms(12_150)), ms(50)));
        assert!(traced.in_flight_at_kill && !traced.in_flight_at_reaping);
        assert_eq!((traced.unmapped_ranges, traced.unmapped_bytes), (1, 2 << 20));
        assert_eq!(traced.reports, 1);
    }

    #[test]
    fn trace_without_a_kill_or_an_end_is_an_error() {
        let missing = Traced::of(TRACE, 7).unwrap_err().to_string();
        assert!(missing.contains("no kill of 7 in the trace"), "{missing}");
        let cut = TRACE.replace("finish_task_reaping", "elsewhere");
        let cut = Traced::of(&cut, 142).unwrap_err().to_string();
        assert!(cut.contains("1 attempts began and 0 ended"), "{cut}");
    }
}
