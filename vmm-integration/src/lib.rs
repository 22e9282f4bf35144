//! The VMM's side: guests put in front of the daemon, and what is measured on the host.

pub mod browser;
pub mod cgroup;
pub mod control;
pub mod daemon;
pub mod frontend;
pub mod host;
pub mod hostile;
pub mod hugetlb;
pub mod inode_lock;
pub mod lab;
pub mod model;
pub mod qemu;
pub mod ram;
pub mod user_mode_linux;
