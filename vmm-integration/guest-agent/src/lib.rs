// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol between the host and the agent inside the test guest.
//!
//! The agent is the guest's init and serves one virtio-serial port, [`PORT_NAME`]. Each message is
//! one JSON object on a line of its own: the host sends [`Request`]s, the agent answers each with
//! one [`Response`] that carries the same id. Answers come in the order in which the commands
//! end, not in which they were sent: a long [`Command::Alloc`] does not hold up a
//! [`Command::MemInfo`].
//!
//! All sizes are in bytes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub mod faulting;
pub mod hugetlb;
pub mod pattern;
pub mod placement;
pub mod race;
pub mod victim;

pub use pattern::{Mismatch, Verified};

use faulting::{Faulted, FaultingPlan};
use hugetlb::{StormPlan, StormReport};
use placement::{PlacementPlan, PlacementReport};
use race::{MemoryBlocks, RacePlan, RaceReport, Task};
use victim::{VictimPlan, VictimReport};

/// Name of the virtio-serial port on which the agent serves.
pub const PORT_NAME: &str = "org.vhost-device-balloon.agent";

/// Name on the kernel's command line of a terminal on which the agent serves instead, such as
/// `AGENT_PORT=/dev/ttyS0`, for a guest that has no virtio-serial device.
pub const PORT_VARIABLE: &str = "AGENT_PORT";

/// The longest line, newline included, that either side accepts.
///
/// Bounds what a confused peer can make the other side hold; the longest honest message is the
/// contents of a sysfs or procfs file.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// Folder of the guest in which the agent looks for `NAME.ko`, decompressed.
pub const MODULE_DIR: &str = "/lib/modules";

/// A request of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the answer.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// The agent's commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Asks for kernel release, uptime and page size. Answer: [`Reply::Hello`].
    Hello,
    /// Loads `/lib/modules/NAME.ko`. Answer: [`Reply::Done`].
    LoadModule {
        /// Name without the ending.
        name: String,
        /// As on a `modprobe` command line, `key=value key=value`.
        params: String,
    },
    /// Unloads a module. Answer: [`Reply::Done`].
    UnloadModule {
        /// Name as in `/proc/modules`.
        name: String,
    },
    /// Maps anonymous memory and fills it with [`pattern`]. Answer: [`Reply::Done`].
    ///
    /// Refused when it would not fit in the guest's available memory: the agent is the only
    /// process, so that running out of memory ends the guest.
    Alloc {
        /// Names the allocation in later commands; must be free.
        id: u32,
        /// Size, a multiple of the page size.
        bytes: u64,
        /// Part of the pattern.
        generation: u16,
    },
    /// Fills an allocation with the pattern of another generation. Answer: [`Reply::Done`].
    Rewrite {
        /// The allocation.
        id: u32,
        /// Part of the pattern.
        generation: u16,
    },
    /// Compares an allocation, every word of it, with its pattern. Answer: [`Reply::Verified`].
    Verify {
        /// The allocation.
        id: u32,
    },
    /// Unmaps an allocation. Answer: [`Reply::Done`].
    Free {
        /// The allocation.
        id: u32,
    },
    /// Has a process of its own fill memory with a pattern, check it and end, whether it fits in the
    /// guest's memory or not: unlike init, it may be killed for it. Answer: [`Reply::ProcessEnd`].
    UseMemory {
        /// Size, a multiple of the page size.
        bytes: u64,
    },
    /// Lets programs fault memory in. Answer: [`Reply::Faulted`], when their time is over.
    Fault {
        /// What they do.
        plan: FaultingPlan,
    },
    /// Reads `/proc/meminfo`. Answer: [`Reply::MemInfo`].
    MemInfo,
    /// Reads a file of at most some hundred KiB, such as one in sysfs or procfs.
    /// Answer: [`Reply::Text`].
    ReadFile {
        /// Absolute path.
        path: String,
    },
    /// Reads a file or a block device from its beginning, which leaves it in the page cache. Answer:
    /// [`Reply::Done`].
    ReadThrough {
        /// Absolute path.
        path: String,
        /// How much of it, in bytes; it must be there.
        bytes: u64,
    },
    /// Writes to an existing file with one `write` call, as `echo -n` does. Answer:
    /// [`Reply::Done`], or a [`Failure`] with the name of the error.
    WriteFile {
        /// Absolute path.
        path: String,
        /// What to write.
        text: String,
    },
    /// Looks for the virtio balloon device. Answer: [`Reply::Balloon`].
    Balloon,
    /// Lists the memory blocks. Answer: [`Reply::MemoryBlocks`].
    MemoryBlocks,
    /// Lists the tasks in a state (the letter of `/proc/PID/stat`), with where they are in the
    /// kernel. Answer: [`Reply::Tasks`].
    Tasks {
        /// Such as `D`.
        state: char,
    },
    /// Begins a race; only one runs at a time. Answer: [`Reply::Done`], when it has begun.
    StartRace {
        /// What takes part.
        plan: RacePlan,
    },
    /// Asks how the race stands. Answer: [`Reply::Race`].
    Race {
        /// Ends it. Threads that are in the kernel end when that lets them go.
        stop: bool,
    },
    /// Begins tasks that fault memory in under a cpuset and memory policies; one plan at a time.
    /// Answer: [`Reply::Done`], when they have begun.
    StartPlacement {
        /// The tasks, and their cpuset.
        plan: PlacementPlan,
    },
    /// Asks how these tasks stand. Answer: [`Reply::Placement`].
    Placement {
        /// Ends them.
        stop: bool,
    },
    /// Starts a process for the OOM killer; one at a time. Answer: [`Reply::Done`], when its memory is
    /// in use.
    StartVictim {
        /// Its memory.
        plan: VictimPlan,
    },
    /// Asks how that process stands. Answer: [`Reply::Victim`].
    Victim {
        /// Ends it, and answers when it has ended.
        release: bool,
    },
    /// Runs processes that fault a file of hugetlbfs in, to their end; one plan at a time. Answer:
    /// [`Reply::Storm`].
    Storm {
        /// The processes.
        plan: StormPlan,
    },
    /// Powers the guest off. There may be no answer.
    PowerOff,
}

/// An answer of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id; 0 when the request could not be read.
    pub id: u64,
    /// The result.
    pub outcome: Outcome,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Success.
    Ok(Reply),
    /// Failure.
    Error(Failure),
}

/// The answer to a command that worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command is done and has nothing to tell.
    Done,
    /// See [`Command::Hello`].
    Hello(Hello),
    /// See [`Command::Verify`].
    Verified(Verified),
    /// See [`Command::UseMemory`].
    ProcessEnd(ProcessEnd),
    /// See [`Command::Fault`].
    Faulted(Faulted),
    /// See [`Command::MemInfo`].
    MemInfo(MemInfo),
    /// See [`Command::ReadFile`].
    Text(String),
    /// See [`Command::Balloon`]; none when the guest has no such device.
    Balloon(Option<BalloonDevice>),
    /// See [`Command::MemoryBlocks`].
    MemoryBlocks(MemoryBlocks),
    /// See [`Command::Tasks`].
    Tasks(Vec<Task>),
    /// See [`Command::Race`].
    Race(RaceReport),
    /// See [`Command::Placement`].
    Placement(PlacementReport),
    /// See [`Command::Victim`].
    Victim(VictimReport),
    /// See [`Command::Storm`].
    Storm(StormReport),
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For a human: what was tried and what went wrong.
    pub message: String,
    /// Name of the system call's error, such as `EBUSY`, if one is behind it.
    pub errno: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The guest, as it introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// As `uname -r` prints it.
    pub kernel_release: String,
    /// Milliseconds since the kernel started, by the guest's clock.
    pub uptime_ms: u64,
    /// Size of the guest's base page in bytes.
    pub page_bytes: u64,
}

/// How the process of [`Command::UseMemory`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessEnd {
    /// It had its memory, and found in it what it had written.
    Done,
    /// It was killed.
    Killed {
        /// The signal: 9 is the OOM killer's.
        signal: i32,
    },
}

/// `/proc/meminfo`: field name to value, in bytes (`HugePages_*` fields are counts).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemInfo(pub BTreeMap<String, u64>);

impl MemInfo {
    /// Value of one field, such as `MemFree`, in bytes; 0 if this kernel has no such field.
    pub fn bytes(&self, field: &str) -> u64 {
        self.0.get(field).copied().unwrap_or(0)
    }

    /// Memory in use, in bytes: `MemTotal` - `MemFree`, caches included.
    pub fn used_bytes(&self) -> u64 {
        self.bytes("MemTotal").saturating_sub(self.bytes("MemFree"))
    }

    /// Reads the text of `/proc/meminfo`. Lines of another form are skipped.
    pub fn parse(text: &str) -> Self {
        let field = |line: &str| {
            let (name, rest) = line.split_once(':')?;
            let mut words = rest.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            Some((name.to_owned(), number.checked_mul(unit)?))
        };
        Self(text.lines().filter_map(field).collect())
    }
}

/// The guest's view of its balloon device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonDevice {
    /// Folder of the device in sysfs.
    pub path: String,
    /// The negotiated feature bits; 0 before a driver is bound.
    pub features: u64,
    /// The device status byte (virtio 1.x, 2.1): 0xf or more once the driver runs it.
    pub status: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_single_lines_and_come_back() {
        let requests = [
            Command::Hello,
            Command::Alloc { id: 7, bytes: 4096, generation: 3 },
            Command::WriteFile { path: "/sys/x".into(), text: "off\nline\n".into() },
            Command::PowerOff,
        ]
        .map(|command| Request { id: 9, command });
        for request in requests {
            let line = serde_json::to_string(&request).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        }
        let outcomes = [
            Outcome::Ok(Reply::Done),
            Outcome::Ok(Reply::Balloon(None)),
            Outcome::Ok(Reply::Text("a\nb".into())),
            Outcome::Error(Failure { message: "no".into(), errno: Some("EBUSY".into()) }),
        ];
        for outcome in outcomes {
            let response = Response { id: u64::MAX, outcome };
            let line = serde_json::to_string(&response).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), response);
        }
    }

    #[test]
    fn the_form_on_the_wire_is_stable() {
        let request = Request { id: 1, command: Command::Verify { id: 2 } };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"id":1,"command":{"verify":{"id":2}}}"#);
        let response = Response { id: 1, outcome: Outcome::Ok(Reply::Done) };
        let line = serde_json::to_string(&response).unwrap();
        assert_eq!(line, r#"{"id":1,"outcome":{"ok":"done"}}"#);
    }

    #[test]
    fn meminfo_is_in_bytes() {
        let text =
            "MemTotal:         987654 kB\nMemFree:  1000 kB\nHugePages_Total:       3\nodd\n";
        let info = MemInfo::parse(text);
        assert_eq!(info.bytes("MemTotal"), 987_654 * 1024);
        assert_eq!(info.bytes("HugePages_Total"), 3);
        assert_eq!(info.used_bytes(), 986_654 * 1024);
        assert_eq!(info.bytes("Absent"), 0);
    }
}
