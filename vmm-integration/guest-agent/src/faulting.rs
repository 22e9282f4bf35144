// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What programs that do nothing but fault memory in are asked for: will-it-scale's page_fault1 and
//! page_fault2, and two that leave the work to the kernel.

use serde::{Deserialize, Serialize};

/// How a program takes pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Writes to each page of anonymous memory, in huge pages where the kernel has them: page_fault1
    /// as the cover letters of free page reporting have it.
    Anonymous,
    /// Writes to each page of a private mapping of a file, which copies a page of the page cache:
    /// page_fault2.
    File,
    /// Has the kernel populate anonymous memory (`MADV_POPULATE_WRITE`), in huge pages where it has
    /// them: a system call for 2 MiB instead of a fault for each page.
    Populate,
    /// Writes to a new file in tmpfs with `write`, 64 KiB a system call, and truncates it.
    Write,
}

impl Work {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::File, Self::Populate, Self::Write];

    /// Pages of memory for each page that is taken: a mapped file also has its own.
    pub fn copies(self) -> u64 {
        match self {
            Self::Anonymous | Self::Populate | Self::Write => 1,
            Self::File => 2,
        }
    }
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultingPlan {
    /// How each takes pages, over and over.
    pub work: Work,
    /// How many there are; each has a thread and a file of its own.
    pub tasks: u32,
    /// Size in bytes of what each takes until it frees all of it, a multiple of the page size.
    pub bytes: u64,
    /// For how long, in milliseconds.
    pub milliseconds: u64,
}

/// What they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faulted {
    /// Pages that all of them took.
    pub pages: u64,
    /// From the first's start to the last's end, in nanoseconds by the guest's clock.
    pub nanoseconds: u64,
}
