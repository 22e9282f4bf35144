// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process as the client libraries of Prometheus show theirs ("Writing client libraries", process
//! metrics). A library for it would bring a parser of all of `/proc`; this takes two of its files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::own_proc::own_proc;

/// What is known of this process; none of what the kernel does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Seconds of CPU time, of all threads.
    pub cpu_seconds: Option<f64>,
    /// Bytes of address space.
    pub virtual_bytes: Option<u64>,
    /// Bytes of resident memory.
    pub resident_bytes: Option<u64>,
    /// Number of open descriptors.
    pub open_fds: Option<u64>,
    /// The most descriptors that may be open; none if there is no limit.
    pub max_fds: Option<u64>,
    /// Seconds since 1970, when the daemon started.
    pub start_seconds: Option<f64>,
}

impl Process {
    /// The process now.
    pub(super) fn look(started: SystemTime) -> Self {
        let statm = own_proc().statm();
        let (virtual_bytes, resident_bytes) = memory(&statm, page_size() as u64);
        let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime));
        Self {
            cpu_seconds: cpu.ok().map(|time| time.as_secs_f64()),
            virtual_bytes,
            resident_bytes,
            open_fds: own_proc().open_descriptors().map(|count| count as u64),
            max_fds: getrlimit(Resource::Nofile).current,
            start_seconds: started.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs_f64()),
        }
    }
}

/// Bytes of address space and of resident memory, as `statm` says in pages (proc_pid_statm(5)).
fn memory(statm: &str, page_bytes: u64) -> (Option<u64>, Option<u64>) {
    let mut fields = statm.split_whitespace().map(|field| field.parse::<u64>().ok());
    let mut next = || fields.next().flatten().and_then(|pages| pages.checked_mul(page_bytes));
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_of_this_test_is_plausible() {
        let now = SystemTime::now();
        let before = Process::look(now);
        let _file = std::fs::File::open("/proc/self/statm").unwrap();
        let process = Process::look(now);
        let (virtual_bytes, resident) = (process.virtual_bytes.unwrap(), process.resident_bytes);
        assert!(virtual_bytes > resident.unwrap() && resident.unwrap() > 1 << 20);
        assert!(process.cpu_seconds.unwrap() > 0.0 && process.start_seconds.unwrap() > 1.7e9);
        // Other tests of this process open and close files, too.
        assert!(process.open_fds.unwrap() > 3 && before.open_fds.unwrap() > 3);
        assert!(process.max_fds.is_none_or(|most| most > process.open_fds.unwrap()));
    }

    #[test]
    fn memory_unreadable_statm_is_unknown() {
        assert_eq!(memory("", 4096), (None, None));
        assert_eq!(memory("2 x 1", 4096), (Some(8192), None));
        assert_eq!(memory("18446744073709551615 1", 4096), (None, Some(4096)));
    }
}
