// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits where an allocation may go: the allocator asks, and others may change the answer while it
//! walks.

use super::zoneref::Zoneref;

/// Where one allocation may go: its nodemask (`ac->nodemask`) and its task's cpuset. Each question is
/// answered as things are at that moment.
pub trait Constraint {
    /// Whether pages may come from `node` (`__cpuset_zone_allowed`, and the nodemask).
    fn allows(&self, node: u8) -> bool;

    /// Whether `node` is in the nodemask, whatever the cpuset says
    /// (`for_each_zone_zonelist_nodemask`).
    fn in_nodemask(&self, node: u8) -> bool;

    /// The slow path begins, or begins again (`read_mems_allowed_begin`).
    fn begin(&mut self) {}

    /// Direct reclaim begins, which may sleep, and need memory itself.
    fn before_reclaim(&mut self) {}

    /// It has ended. The walk goes on before [`Look::AfterReclaim`].
    fn after_reclaim(&mut self) {}

    /// Whether the slow path must begin again because the constraint has changed since
    /// (`check_retry_cpuset`).
    fn must_restart(&mut self, _at: Look) -> bool {
        false
    }

    /// The zones in order of preference, if they are not the system's: up to the entry that ends them.
    fn zonelist(&self, _node: u8, _movable: bool) -> Option<&[Zoneref]> {
        None
    }
}

/// The places of the slow path at which it looks for changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Look {
    /// Before each try: 6.16 and later.
    TopOfRetry,
    /// After reclaim and compaction: 7.3.
    AfterReclaim,
    /// Before the OOM killer.
    BeforeOom,
    /// Before the allocation fails.
    NoPage,
}

/// No limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anywhere;

impl Constraint for Anywhere {
    fn allows(&self, _node: u8) -> bool {
        true
    }

    fn in_nodemask(&self, _node: u8) -> bool {
        true
    }
}
