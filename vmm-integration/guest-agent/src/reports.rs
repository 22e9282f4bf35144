// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! When the driver reports and when it has its acknowledgement, from the kernel's tracing.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::system;

const TRACING: &str = "/sys/kernel/tracing";
/// Returns when the device has acknowledged.
const FUNCTION: &str = "virtballoon_free_page_report";
const MODULE: &str = "virtio_balloon";
const BEGIN: &str = " report_begin: ";
const END: &str = " report_end: ";

/// Mounts the kernel's tracing, unless it is there.
pub(crate) fn mount_tracefs() -> Result<()> {
    match mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).context("mounting tracefs: expected CONFIG_FTRACE"),
    }
}

/// A trace that runs until this is dropped.
pub(crate) struct Reports {
    pipe: File,
    line: Vec<u8>,
    begun: Option<Duration>,
}

impl Reports {
    /// Begins to trace.
    pub(crate) fn trace() -> Result<Self> {
        switch(false)?;
        // Named with its module the function is found again when that is loaded again.
        let modules = system::read_file("/proc/modules")?;
        let loaded = modules.lines().any(|line| line.split(' ').next() == Some(MODULE));
        let place = if loaded { format!("{MODULE}:{FUNCTION}") } else { FUNCTION.to_owned() };
        let probes = format!("p:{} {place}\nr:{} {place}\n", name(BEGIN), name(END));
        // Opened to be truncated, it forgets those of an earlier race.
        fs::write(format!("{TRACING}/kprobe_events"), probes)
            .context("probing the driver: expected CONFIG_KPROBE_EVENTS")?;
        system::write_file(&format!("{TRACING}/trace_clock"), "mono")?;
        fs::write(format!("{TRACING}/trace"), "").context("emptying the trace")?;
        let mut pipe = OpenOptions::new();
        pipe.read(true).custom_flags(libc::O_NONBLOCK);
        let pipe = pipe.open(format!("{TRACING}/trace_pipe")).context("opening the trace")?;
        switch(true)?;
        Ok(Self { pipe, line: Vec::new(), begun: None })
    }

    /// Hands out the reports that have ended since the last time, by `CLOCK_MONOTONIC`.
    pub(crate) fn read(&mut self, mut each: impl FnMut(Duration, Duration)) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let count = match self.pipe.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading the trace"),
            };
            for &byte in &bytes[..count] {
                if byte != b'\n' {
                    self.line.push(byte);
                    continue;
                }
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                if let Some(at) = time_of(&line, BEGIN) {
                    self.begun = Some(at);
                } else if let (Some(end), Some(begin)) = (time_of(&line, END), self.begun.take()) {
                    each(begin, end);
                }
            }
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        if let Err(error) = switch(false) {
            eprintln!("guest-agent: {error:#}");
        }
    }
}

fn name(event: &str) -> &str {
    event.trim_matches([' ', ':'])
}

/// Has all probes hit, or none; there may be none yet.
fn switch(on: bool) -> Result<()> {
    let path = format!("{TRACING}/events/kprobes/enable");
    if !on && !fs::exists(&path).unwrap_or(false) {
        return Ok(());
    }
    system::write_file(&path, if on { "1" } else { "0" })
}

/// When the event of a line was, `TASK-PID [CPU] FLAGS SECONDS.MICROSECONDS: EVENT: …`.
fn time_of(line: &str, event: &str) -> Option<Duration> {
    let (before, _) = line.split_once(event)?;
    let (seconds, micros) = before.trim_end_matches(':').rsplit_once(' ')?.1.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_time() {
        let begin = "     kworker/0:1-20      [000] .....    12.345678: report_begin: \
                     (virtballoon_free_page_report+0x0/0x110 [virtio_balloon])";
        let at = Some(Duration::from_micros(12_345_678));
        assert_eq!(time_of(begin, BEGIN), at);
        assert_eq!(time_of(begin, END), None);
        let end = "  kworker/1:0-9  [001] d..1.  0.000021: report_end: (page_reporting_cycle+0x5 \
                   <- virtballoon_free_page_report)";
        assert_eq!(time_of(end, END), Some(Duration::from_micros(21)));
        assert_eq!(time_of("CPU:0 [LOST 12 EVENTS]", BEGIN), None);
    }
}
