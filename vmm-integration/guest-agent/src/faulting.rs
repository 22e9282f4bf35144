// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What programs that do nothing but fault memory in are asked for, after will-it-scale's
//! page_fault1 and page_fault2.

use serde::{Deserialize, Serialize};

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapped {
    /// Anonymous memory, in huge pages where the kernel has them: page_fault1 as the cover letters
    /// of free page reporting have it.
    Anonymous,
    /// A file, private: each write copies a page of the page cache. page_fault2.
    File,
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultingPlan {
    /// What each maps, writes a byte to in every page, and unmaps, over and over.
    pub mapped: Mapped,
    /// How many there are; each has a thread and a file of its own.
    pub tasks: u32,
    /// Size of a mapping in bytes, a multiple of the page size.
    pub bytes: u64,
    /// For how long, in milliseconds.
    pub milliseconds: u64,
}

/// What they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faulted {
    /// Pages that all of them wrote to.
    pub pages: u64,
    /// From the first's start to the last's end, in nanoseconds by the guest's clock.
    pub nanoseconds: u64,
}
