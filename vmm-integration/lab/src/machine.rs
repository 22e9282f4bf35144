// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a run was made on.

use std::fs;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// The machine, and of what state of the project the program was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// CPUs that the run could use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// The commit that this program was built of, with `-dirty` behind it if its sources or those of
    /// the daemon differed from it then; empty if it was built without git.
    pub commit: String,
    /// When the case began, in UTC, RFC 3339.
    pub date: String,
}

impl Machine {
    /// This machine, now. What cannot be found out is left empty: a run does not fail for that.
    pub fn here() -> Self {
        static FIXED: OnceLock<Machine> = OnceLock::new();
        let fixed = FIXED.get_or_init(|| {
            let line = |file: &str, name: &str| {
                let text = fs::read_to_string(file).unwrap_or_default();
                let found = text.lines().find_map(|line| line.strip_prefix(name));
                found.map(|rest| rest.trim_start_matches([':', ' ', '\t']).to_owned())
            };
            let kib: Option<u64> = line("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse().ok());
            Self {
                cpu: line("/proc/cpuinfo", "model name").unwrap_or_default(),
                cores: std::thread::available_parallelism().map_or(0, usize::from),
                memory_bytes: kib.unwrap_or(0) * 1024,
                kernel: line("/proc/sys/kernel/osrelease", "").unwrap_or_default(),
                commit: env!("LAB_COMMIT").to_owned(),
                date: String::new(),
            }
        });
        let now = jiff::Timestamp::now();
        Self { date: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), ..fixed.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_memory_and_a_kernel() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
        assert!(!machine.kernel.is_empty());
        let date: jiff::Timestamp = machine.date.parse().unwrap();
        assert!(date > jiff::Timestamp::UNIX_EPOCH);
    }
}
