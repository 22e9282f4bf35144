// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An executable model of Linux's page allocator: the parts that free page reporting, memory
//! offlining and contiguous allocation meet in.
//!
//! The semantics are those of Linux 6.19 unless [`KernelSemantics`] says otherwise. This module knows no
//! contents of pages, only what each of them is.
//!
//! | file | Linux |
//! |---|---|
//! | [`geometry`] | orders, pageblocks, sections, memory blocks |
//! | [`frame`], [`section`] | `struct page`, sparse sections, pageblock flags |
//! | [`buddy`] | `__free_one_page`, `__rmqueue`, free lists by order and migratetype |
//! | [`pcp`] | per-CPU page lists |
//! | [`zone`] | zones, accounting |
//! | [`zonelist`], [`zoneref`] | `build_all_zonelists`, `struct zonelist`, `struct zoneref` |
//! | [`watermarks`] | `init_per_zone_wmark_min`, `set_recommended_min_free_kbytes` |
//! | [`allocate`], `walk`, [`slow_path`] | `__alloc_pages`, `get_page_from_freelist`, `__alloc_pages_slowpath` |
//! | [`constraint`], [`nodemask`] | `ac->nodemask` and cpuset, `nodemask_t` |
//! | [`isolation`] | `start_isolate_page_range`, `test_pages_isolated`, `undo_isolate_page_range` |
//! | [`hotplug`] | `online_pages`, `offline_pages` |
//! | [`contig`] | `alloc_contig_range` |
//! | `zero_pages` | `__GFP_ZERO`, and pages that a device has zeroed (proposed) |
//! | [`validate`] | whether counters and lists agree with the frames |

pub mod allocate;
pub mod buddy;
pub mod constraint;
pub mod contig;
pub mod frame;
pub mod geometry;
mod hook;
pub mod hotplug;
pub mod isolation;
pub mod nodemask;
pub mod pcp;
pub mod section;
pub mod semantics;
pub mod slow_path;
pub mod validate;
mod walk;
pub mod watermarks;
mod zero_pages;
pub mod zone;
pub mod zonelist;
pub mod zoneref;

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

pub use allocate::{AllocError, AllocRequest};
pub use constraint::{Anywhere, Constraint, Look};
pub use frame::{Frame, FrameState};
pub use geometry::{Geometry, MigrateType, Pfn, PfnRange};
pub use hook::FreeHook;
pub use hotplug::{MovePages, OfflineError};
pub use isolation::{Busy, IsolateMode};
pub use nodemask::{AtomicNodeMask, NodeMask};
pub use pcp::VMSTAT_INTERVAL;
pub use pcp::lists::PcpSizes;
pub use semantics::KernelSemantics;
pub use slow_path::Reclaim;
pub use validate::Inconsistency;
pub use zone::{Watermarks, ZoneId, ZoneType};
pub use zonelist::scheme::{ZonelistFlaw, ZonelistUpdate};
pub use zonelist::surroundings::Surroundings;
pub use zoneref::Zoneref;

use crate::bits::Bits;
use crate::sync::{Guard, Lock, OnceLock};
use buddy::free_area::FreeArea;
use hook::InstalledHook;
use section::Sections;
use zero_pages::ZeroPages;
use zone::Zone;
use zonelist::Zonelists;

/// The order of interest while there is no hook, or it is off.
const NO_HOOK: u8 = u8::MAX;

/// How the memory of a new [`Mm`] is laid out.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Orders and sizes.
    pub geometry: Geometry,
    /// Whose kernel's rules.
    pub semantics: KernelSemantics,
    /// How many CPUs have lists of their own.
    pub cpus: usize,
    /// The zones, each a list of runs of whole sections that are online from the start.
    pub zones: Vec<ZoneLayout>,
    /// Sections with pages of two zones, online from the start, in no list of `zones`.
    pub shared: Vec<SharedSection>,
    /// Sections of address space, those for memory to come included.
    pub sections: usize,
    /// Whether each look at a zonelist is a scheduling point of an exploration.
    pub watch_zonelists: bool,
}

/// A section with pages of two zones, as the one has in which a zone of movable pages begins. It stays
/// online: only memory of one zone can be taken offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSection {
    /// Its index.
    pub section: usize,
    /// The zone of its first pages.
    pub first: ZoneId,
    /// The zone of the others.
    pub second: ZoneId,
    /// The pageblock of the section at which the second begins. It must begin a block of the largest
    /// order: blocks of different zones never merge.
    pub boundary_block: usize,
}

/// One zone of a [`Layout`].
#[derive(Clone, Debug)]
pub struct ZoneLayout {
    /// The NUMA node that it is of.
    pub node: u8,
    /// Normal or movable.
    pub kind: ZoneType,
    /// Sections that are its own and online, in runs.
    pub sections: Vec<core::ops::Range<usize>>,
}

impl Layout {
    /// One node with one zone of `sections` sections, and no room for more.
    pub fn flat(geometry: Geometry, cpus: usize, sections: usize) -> Self {
        Self {
            geometry,
            semantics: KernelSemantics::default(),
            cpus,
            zones: vec![ZoneLayout {
                node: 0,
                kind: ZoneType::Movable,
                sections: core::iter::once(0..sections).collect(),
            }],
            shared: Vec::new(),
            sections,
            watch_zonelists: false,
        }
    }
}

/// The memory management of one guest.
///
/// ```
/// use guest_driver::page_alloc::{AllocRequest, FrameState, Geometry, Layout, Mm, ZoneId};
///
/// // One zone of two sections of 128 MiB, and one CPU.
/// let mm = Mm::new(&Layout::flat(Geometry::LINUX, 1, 2));
/// let before = mm.zone(ZoneId(0)).free_pages();
///
/// let huge = mm.alloc(0, AllocRequest::movable(9))?;
/// assert_eq!(mm.state(huge), FrameState::Allocated { order: 9, movable: true });
/// mm.free(0, huge);
///
/// mm.drain_all(ZoneId(0));
/// assert_eq!(mm.zone(ZoneId(0)).free_pages(), before);
/// mm.validate().expect("counters agree with the frames");
/// # Ok::<(), guest_driver::page_alloc::AllocError>(())
/// ```
pub struct Mm {
    pub(crate) geometry: Geometry,
    pub(crate) semantics: KernelSemantics,
    pub(crate) sections: Sections,
    pub(crate) zones: Vec<Zone>,
    zonelists: Zonelists,
    /// What can be reclaimed.
    reclaim: OnceLock<Arc<dyn Reclaim>>,
    hook: OnceLock<InstalledHook>,
    /// The smallest order that the hook sees; most frees read no more than this.
    hook_order: AtomicU8,
    /// Sections in which the hook needs to see no more blocks, as of now: a bit each, set and
    /// cleared by the hook.
    known: Arc<Bits>,
    /// Which pages are known to be zero; none in a guest whose device says nothing of it.
    zero_pages: OnceLock<ZeroPages>,
    /// Serialises online and offline (`mem_hotplug_lock`).
    pub(crate) hotplug: Lock<()>,
    /// Those that wait for it.
    hotplug_waiters: AtomicUsize,
}

impl Mm {
    /// Memory of this layout, all of it free.
    ///
    /// # Panics
    /// If the zones of a shared section meet within a block of the largest order.
    pub fn new(layout: &Layout) -> Self {
        let geometry = layout.geometry;
        let zones: Vec<Zone> = layout
            .zones
            .iter()
            .map(|zone| Zone::new(&geometry, zone.node, zone.kind, layout.cpus))
            .collect();
        let mm = Self {
            geometry,
            semantics: layout.semantics,
            sections: Sections::new(geometry, layout.sections),
            zonelists: Zonelists::new(layout, &zones),
            reclaim: OnceLock::new(),
            zones,
            hook: OnceLock::new(),
            hook_order: AtomicU8::new(NO_HOOK),
            known: Arc::new(Bits::new(layout.sections)),
            zero_pages: OnceLock::new(),
            hotplug: Lock::new(()),
            hotplug_waiters: AtomicUsize::new(0),
        };
        for (id, zone) in layout.zones.iter().enumerate() {
            for section in zone.sections.iter().flat_map(Clone::clone) {
                mm.sections.add(section, mm.one_zone(ZoneId(id)));
                mm.online_at_boot(section);
            }
        }
        for &SharedSection { section, first, second, boundary_block } in &layout.shared {
            let boundary = geometry.pageblocks(boundary_block);
            assert!(
                Pfn(boundary).is_aligned(geometry.max_order)
                    && (1..geometry.section_pages()).contains(&boundary),
                "zones of section {section} meet within a block of the largest order"
            );
            mm.sections.add(section, section::Zones { first, second, boundary });
            mm.online_at_boot(section);
        }
        mm.set_watermarks();
        mm.rebuild_zonelists();
        mm
    }

    /// Installs the hook, which sees every free from now on.
    ///
    /// # Errors
    /// Returns the hook if there is one already: as in Linux, one device may register.
    pub fn set_free_hook(&self, hook: Arc<dyn FreeHook>) -> Result<(), Arc<dyn FreeHook>> {
        let installed = InstalledHook { listens_before: hook.listens_before(), hook };
        self.hook.set(installed).map_err(|refused| refused.hook)?;
        self.enable_hook(true);
        Ok(())
    }

    pub(crate) fn hook(&self) -> Option<&dyn FreeHook> {
        self.hook.get().map(|installed| installed.hook.as_ref())
    }

    /// The hook, if it must see that the block at `pfn` is freed. Under the zone's lock.
    pub(crate) fn hook_for(&self, pfn: Pfn, order: u8) -> Option<&InstalledHook> {
        let sees = order >= self.hook_order.load(Ordering::Acquire)
            && !self.known.is_set_under_lock(self.sections.index_of(pfn));
        if sees { self.hook.get() } else { None }
    }

    /// The bits of the sections in which the hook need not see frees, for it to set and to clear.
    /// After clearing one, it calls [`Mm::pass_zone_locks`] before it looks for freed blocks.
    pub(crate) fn known_sections(&self) -> Arc<Bits> {
        Arc::clone(&self.known)
    }

    /// Turns the hook on or off (`page_reporting_enabled`). When this returns, no earlier call of it is
    /// in progress.
    pub(crate) fn enable_hook(&self, enable: bool) {
        let order = self.hook().filter(|_| enable).map_or(NO_HOOK, FreeHook::order);
        self.hook_order.store(order, Ordering::Release);
        // It is called with a zone's lock held.
        for zone in &self.zones {
            let _area = zone.lock();
            zone.set_awaited(None);
        }
    }

    /// Has the hook called once the zone can spare `pages` above its low watermark; false, and it is not
    /// called, if it can already. While the hook is off nothing is awaited.
    pub(crate) fn await_spare_pages(&self, zone: ZoneId, pages: u64) -> bool {
        let zone = self.zone(zone);
        let _area = zone.lock();
        if !self.is_hook_on() {
            return true;
        }
        // Of the watermark as it is now: a change of it is followed by a look under this lock.
        let wanted = zone.watermarks().low + pages + 1;
        let missing = zone.free_pages() < wanted;
        zone.set_awaited(missing.then_some(wanted));
        missing
    }

    /// Whether the hook is called.
    pub(crate) fn is_hook_on(&self) -> bool {
        self.hook_order.load(Ordering::Acquire) != NO_HOOK
    }

    /// Calls the hook if the zone has the free pages that it awaits. Under the zone's lock, after
    /// pages were booked as free.
    pub(crate) fn check_recovery(&self, zone: &Zone) {
        if zone.has_recovered() {
            self.tell_recovered(zone);
        }
    }

    /// Calls the hook if it awaits free pages of the zone. Under the zone's lock.
    #[cold]
    pub(crate) fn tell_recovered(&self, zone: &Zone) {
        if let Some(hook) = self.hook().filter(|_| zone.is_awaited()) {
            zone.set_awaited(None);
            hook.zone_recovered();
        }
    }

    /// Calls `mark` unless the section is offline, and before it can go offline.
    pub(crate) fn while_online(&self, section: usize, mark: impl FnOnce()) {
        let first = self.geometry.section_range(section).start;
        // One with two zones stays online.
        let Some(_locked) = self.lock_zone_of(first) else { return };
        if self.is_online(section) {
            mark();
        }
    }

    /// Takes and releases the lock of each zone that the section has pages of, so that their last
    /// holders are done.
    pub(crate) fn pass_zone_locks(&self, section: usize) {
        self.sections.by_zone(section).for_each(|(zone, _)| drop(self.zone(zone).lock()));
    }

    /// Takes and releases the lock of the section's first zone only.
    pub(crate) fn pass_first_zone_lock(&self, section: usize) {
        let zones = self.sections.by_zone(section);
        zones.take(1).for_each(|(zone, _)| drop(self.zone(zone).lock()));
    }

    /// Locks the zone of a frame. It is the frame's zone until the guard is dropped; before the lock is
    /// taken the section may be removed, and added to another.
    pub(crate) fn lock_zone_of(&self, pfn: Pfn) -> Option<(ZoneId, Guard<'_, FreeArea>)> {
        loop {
            let id = self.zone_of(pfn)?;
            let area = self.zone(id).lock();
            if self.zone_of(pfn) == Some(id) {
                return Some((id, area));
            }
        }
    }

    /// Keeps others from taking memory off- or online while the guard lives (`mem_hotplug_begin`, and
    /// `get_online_mems`, which lets several readers in).
    pub(crate) fn lock_hotplug(&self) -> Guard<'_, ()> {
        self.hotplug_waiters.fetch_add(1, Ordering::Relaxed);
        let guard = self.hotplug.lock();
        self.hotplug_waiters.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// The same unless another has it, which may wait for the caller.
    pub(crate) fn try_lock_hotplug(&self) -> Option<Guard<'_, ()>> {
        self.hotplug.try_lock()
    }

    /// How many wait until another's on- or offlining, or its look at memory, ends.
    pub fn hotplug_waiters(&self) -> usize {
        self.hotplug_waiters.load(Ordering::Relaxed)
    }

    /// Orders and sizes.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// How many zones there are.
    pub fn zone_count(&self) -> usize {
        self.zones.len()
    }

    /// A zone.
    pub fn zone(&self, zone: ZoneId) -> &Zone {
        &self.zones[zone.0]
    }

    /// The zone that a page frame belongs to; none if its section is not present.
    pub fn zone_of(&self, pfn: Pfn) -> Option<ZoneId> {
        self.sections.zone(pfn)
    }

    /// How many sections of address space there are.
    pub fn section_count(&self) -> usize {
        self.sections.len()
    }

    /// Whether the section is online.
    pub fn is_online(&self, section: usize) -> bool {
        self.sections.get(section).is_some_and(section::Section::is_online)
    }

    /// Returns the migratetype of a pageblock, or the one it has again after its isolation.
    pub fn underlying_migratetype(&self, pfn: Pfn) -> MigrateType {
        self.sections.underlying_migratetype(pfn)
    }

    /// The state of a frame, read without a lock: it was true a moment ago.
    pub fn state(&self, pfn: Pfn) -> FrameState {
        self.sections.frame(pfn).map_or(FrameState::Absent, Frame::state)
    }

    /// Bytes of metadata of all sections that are present.
    pub fn metadata_bytes(&self) -> usize {
        self.sections.metadata_bytes()
    }
}
