// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured of a process on the host, and what its memory comes from.

pub mod cgroup;
pub mod host;
pub mod hugetlb;
pub mod inode_lock;
