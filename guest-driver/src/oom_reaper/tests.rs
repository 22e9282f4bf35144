// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![expect(clippy::single_range_in_vec_init, reason = "a notifier has ranges, and may have one")]

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::address_space::{AddressSpace, Pages, Reclaim, VmaKind, VmaSetup};
use crate::waits::{Party, Waits};

struct World {
    waits: Arc<Waits>,
    pages: Arc<Pages>,
    mm: AddressSpace,
    reaper: Party,
    task: Party,
}

impl World {
    fn new() -> Self {
        let waits = Arc::new(Waits::new());
        let reclaim = Arc::new(Reclaim::new(&waits, 8));
        let pages = Arc::new(Pages::new(reclaim));
        let of = |kind, range, locked| VmaSetup { range, kind, locked };
        let vmas = vec![
            VmaSetup::private(0..4),
            of(VmaKind::Shared, 10..12, false),
            of(VmaKind::Private, 20..22, true),
            of(VmaKind::Hugetlb, 30..32, false),
            of(VmaKind::PfnMap, 40..42, false),
        ];
        let mm = AddressSpace::new(&waits, Arc::clone(&pages), vmas);
        let [reaper, task] = ["the reaper", "a task"].map(|name| waits.party(name));
        Self { waits, pages, mm, reaper, task }
    }

    fn setup(&self) -> Setup {
        let reclaim = Arc::new(Reclaim::new(&self.waits, 8));
        Setup { subscription: 0, interests: vec![0..2], pages: Arc::clone(&self.pages), reclaim }
    }

    fn reap(&self, config: Config) -> Reaped {
        let reaper = Reaper { party: self.reaper, config, flaw: None };
        reaper.reap(&self.mm, &mut |_| ())
    }

    fn resident(&self) -> Vec<u64> {
        self.mm.vmas().iter().map(|vma| vma.resident()).collect()
    }
}

fn config(scheme: Scheme) -> Config {
    Config { attempts: 3, chunk_pages: 2, ..Config::new(scheme) }
}

#[test]
fn reaper_frees_private_memory_only() {
    let world = World::new();
    let reaped = world.reap(config(Scheme::IntervalTree));
    assert_eq!((reaped.attempts, reaped.freed, reaped.gave_up), (1, 6, false));
    assert_eq!(world.resident(), [0, 2, 0, 2, 2]);
    assert!(world.mm.is_skipped());
}

#[test]
fn locked_memory_is_kept_where_linux_kept_it() {
    let world = World::new();
    world.reap(Config { reaps_locked: false, ..config(Scheme::IntervalTree) });
    assert_eq!(world.resident(), [0, 2, 2, 2, 2]);
}

#[test]
fn held_mmap_lock_costs_every_attempt() {
    let world = World::new();
    let held = world.mm.mmap_lock.write(world.task);
    let reaped = world.reap(config(Scheme::IntervalTree));
    assert_eq!((reaped.attempts, reaped.freed, reaped.gave_up), (3, 0, true));
    drop(held);
    // Another victim may be chosen by now.
    assert!(world.mm.is_skipped());
}

/// What is resident of the two private VMAs after a scheme, with a notifier whose interest is half of the
/// first: KVM for a scheme that tries, a device that fails for the others.
fn with_interest(scheme: Scheme) -> (Vec<u64>, Reaped) {
    let mut world = World::new();
    let kvm = Arc::new(Kvm::new(&world.waits, world.setup(), None));
    let device = Arc::new(Pinning::new(world.setup(), false));
    let lock: Arc<dyn crate::address_space::Notifier> = match scheme {
        Scheme::TryLock => kvm,
        _ => device,
    };
    world.mm.subscribe(lock, &[0..2]);
    let reaped = world.reap(config(scheme));
    (vec![world.resident()[0], world.resident()[2]], reaped)
}

#[test]
fn interest_forfeits_what_its_scheme_says() {
    for (scheme, left, attempts) in [
        (Scheme::SkipNotified, [4, 2], 1),
        (Scheme::BailOut, [4, 2], 3),
        (Scheme::DriverRange, [4, 0], 3),
        (Scheme::IntervalTree, [4, 0], 3),
        (Scheme::IntervalTreeChunks, [2, 0], 3),
        (Scheme::TryLock, [0, 0], 1),
    ] {
        let (resident, reaped) = with_interest(scheme);
        assert_eq!((resident, reaped.attempts), (left.to_vec(), attempts), "{scheme}");
    }
}

#[test]
fn pinned_range_is_unmapped_in_one_attempt() {
    let mut world = World::new();
    let device = Arc::new(Pinning::new(world.setup(), false));
    world.mm.subscribe(Arc::clone(&device) as _, &[0..2]);
    device.pin(world.task, &world.mm, 1);
    let reaped = world.reap(config(Scheme::TryLock));
    assert_eq!((reaped.attempts, reaped.unmapped, reaped.freed), (1, 6, 5));
    device.unpin();
    assert_eq!((world.pages.freed(), world.pages.faults()), (6, vec![]));
}

#[test]
fn kvm_drops_what_the_guest_has_mapped() {
    let mut world = World::new();
    let kvm = Arc::new(Kvm::new(&world.waits, world.setup(), None));
    world.mm.subscribe(Arc::clone(&kvm) as _, &[0..2]);
    kvm.fault(world.task, &world.mm, 1);
    let reaped = world.reap(config(Scheme::TryLock));
    assert_eq!((reaped.freed, world.pages.faults()), (6, vec![]));
    assert!(kvm.is_at_rest());
}

#[test]
fn device_drops_what_it_has_mapped() {
    for (scheme, freed) in [(Scheme::TryLock, 6), (Scheme::Deferred, 6), (Scheme::AlwaysBlock, 6)] {
        for over in [Over::Allocation, Over::Flush, Over::Wait] {
            let mut world = World::new();
            let device = Arc::new(Device::new(&world.waits, world.setup(), over, None));
            world.mm.subscribe(Arc::clone(&device) as _, &[0..2]);
            device.fault(world.task, &world.mm, 1);
            device.work(world.task);
            assert_eq!(world.reap(config(scheme)).freed, freed);
            assert!(device.is_at_rest() && world.pages.faults().is_empty(), "{scheme} {over:?}");
        }
    }
}
