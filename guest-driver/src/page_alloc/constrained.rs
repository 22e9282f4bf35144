// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations that are limited to some nodes: the walk alone, until there is a slow path to ask.

use super::{AllocError, AllocRequest, Constraint, Look, Mm, Zoneref};
use super::{FrameState, MigrateType, Pfn};

impl Mm {
    /// Allocates a block on `cpu` where `constraint` allows.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_constrained(
        &self,
        cpu: usize,
        request: AllocRequest,
        constraint: &mut impl Constraint,
    ) -> Result<Pfn, AllocError> {
        if let Some(page) = self.walk(cpu, request, constraint) {
            return Ok(page);
        }
        loop {
            constraint.begin();
            if constraint.must_restart(Look::TopOfRetry) {
                continue;
            }
            if let Some(page) = self.walk(cpu, request, constraint) {
                return Ok(page);
            }
            if !constraint.must_restart(Look::BeforeOom) {
                return Err(AllocError::OutOfMemory);
            }
        }
    }

    fn walk(&self, cpu: usize, request: AllocRequest, limits: &impl Constraint) -> Option<Pfn> {
        let movable = request.migratetype == MigrateType::Movable;
        let AllocRequest { node, .. } = request;
        let own = limits.zonelist(node, movable);
        let system = if own.is_some() { &[][..] } else { self.zonelists.of(node, movable) };
        let own = own.unwrap_or_default().iter().map_while(Zoneref::zone);
        let mut zones = own.chain(system.iter().copied()).map(|id| self.zone(id));
        zones.find_map(|zone| {
            if !limits.allows(zone.node) {
                return None;
            }
            let pfn = self.alloc_in(zone, cpu, request)?;
            self.set_state(pfn, FrameState::Allocated { order: request.order, movable });
            Some(pfn)
        })
    }
}
