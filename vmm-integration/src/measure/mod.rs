// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measurements of processes on the host, and the means to limit or block their memory.
//!
//! | file | idea |
//! |---|---|
//! | [`host`] | resident memory, CPU time, curves over time, one `wait_until` for all tests |
//! | [`cgroup`] | a memory limit around a process |
//! | [`hugetlb`] | a pool of huge pages, raised for a test and lowered again |
//! | [`inode_lock`] | the lock of a memory file's inode, held for as long as a test needs |

pub mod cgroup;
pub mod host;
pub mod hugetlb;
pub mod inode_lock;
