// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the actors of a run share, and what is checked at rest.

use std::sync::{Arc, OnceLock};

use super::invariant::Holds;
use super::setting::{Mirror, Mistake, Setting};
use crate::Run;
use guest_driver::address_space::{
    AddressSpace, Fault, Notifier, Pages, Reclaim, VmaKind, VmaSetup,
};
use guest_driver::oom_reaper::{Config, Device, Event, Kvm, Over, Pinning, Reaped, Reaper, Setup};
use guest_driver::sync;
use guest_driver::waits::{Party, Waits};

/// The page that every mirror maps.
const SHARED: u64 = 4;

/// What the actors of a run share.
pub struct World {
    setting: Setting,
    run: Arc<Run<Holds>>,
    mm: AddressSpace,
    pages: Arc<Pages>,
    reclaim: Arc<Reclaim>,
    reaper: Reaper,
    mirrors: Vec<Mirrored>,
    victim: Party,
    mapper: Party,
    reaped: OnceLock<Reaped>,
}

/// What mirrors the address space, with the threads that use it.
struct Mirrored {
    device: AnyDevice,
    user: Party,
    worker: Party,
}

enum AnyDevice {
    Device(Arc<Device>),
    Kvm(Arc<Kvm>),
    Pinning(Arc<Pinning>),
}

impl AnyDevice {
    fn new(mirror: Mirror, waits: &Arc<Waits>, setup: Setup, mistake: Option<Mistake>) -> Self {
        let device = |setup, over| {
            let flaw = match mistake {
                Some(Mistake::Device(flaw)) => Some(flaw),
                _ => None,
            };
            Self::Device(Arc::new(Device::new(waits, setup, over, flaw)))
        };
        match mirror {
            Mirror::Allocates => device(setup, Over::Allocation),
            Mirror::Flushes => device(setup, Over::Flush),
            Mirror::Waits => device(setup, Over::Wait),
            Mirror::Kvm => {
                let flaw = match mistake {
                    Some(Mistake::Kvm(flaw)) => Some(flaw),
                    _ => None,
                };
                Self::Kvm(Arc::new(Kvm::new(waits, setup, flaw)))
            }
            Mirror::Pins => {
                Self::Pinning(Arc::new(Pinning::new(setup, mistake == Some(Mistake::Pin))))
            }
        }
    }

    fn notifier(&self) -> Arc<dyn Notifier> {
        match self {
            Self::Device(device) => Arc::clone(device) as _,
            Self::Kvm(kvm) => Arc::clone(kvm) as _,
            Self::Pinning(pinning) => Arc::clone(pinning) as _,
        }
    }

    fn is_at_rest(&self) -> bool {
        match self {
            Self::Device(device) => device.is_at_rest(),
            Self::Kvm(kvm) => kvm.is_at_rest(),
            Self::Pinning(_) => true,
        }
    }
}

impl World {
    pub(super) fn new(setting: &Setting, run: Arc<Run<Holds>>) -> Self {
        let waits = Arc::new(Waits::new());
        let reclaim = Arc::new(Reclaim::new(&waits, setting.scenario.free));
        let pages = Arc::new(Pages::new(Arc::clone(&reclaim)));
        let huge = VmaSetup { range: 8..9, kind: VmaKind::Hugetlb, locked: false };
        // From the top down, so that what is of interest is reached before anything is freed.
        let vmas = vec![VmaSetup::private(0..1), VmaSetup::private(SHARED..SHARED + 2), huge];
        let mut mm = AddressSpace::new(&waits, Arc::clone(&pages), vmas);
        let mut mirrors = Vec::new();
        for (subscription, &mirror) in setting.scenario.mirrors.iter().enumerate() {
            let setup = Setup {
                subscription,
                interests: std::iter::once(SHARED..SHARED + 1).collect(),
                pages: Arc::clone(&pages),
                reclaim: Arc::clone(&reclaim),
            };
            let device = AnyDevice::new(mirror, &waits, setup.clone(), setting.mistake);
            mm.subscribe(device.notifier(), &setup.interests);
            let [user, worker] = ["the driver", "the worker"].map(|name| waits.party(name));
            mirrors.push(Mirrored { device, user, worker });
        }
        let flaw = match setting.mistake {
            Some(Mistake::Reaper(flaw)) => Some(flaw),
            _ => None,
        };
        let config = Config { attempts: 3, chunk_pages: 1, ..Config::new(setting.scheme) };
        let reaper = Reaper { party: waits.party("the reaper"), config, flaw };
        let [victim, mapper] = ["the victim", "the mapper"].map(|name| waits.party(name));
        // The OOM killer has chosen its victim: what allocates now waits for the reaper.
        reclaim.begin(reaper.party);
        let setting = setting.clone();
        let reaped = OnceLock::new();
        Self { setting, run, mm, pages, reclaim, reaper, mirrors, victim, mapper, reaped }
    }

    /// The reaper reaps the victim.
    pub(super) fn reap(&self) {
        let party = self.reaper.party;
        let (mut attempts, mut is_reclaiming) = (1, true);
        let mut on_event = |event| {
            if event != Event::Sleeps {
                return;
            }
            attempts += 1;
            if attempts > self.reaper.config.attempts && is_reclaiming {
                let what = format!("attempt {attempts} begins");
                self.run.violate(Holds::AttemptsAreBounded, what);
                // The run must end.
                is_reclaiming = false;
                self.reclaim.end(party);
            }
            sync::yield_now();
        };
        let reaped = self.reaper.reap(&self.mm, &mut on_event);
        if is_reclaiming {
            self.reclaim.end(party);
        }
        let _ = self.reaped.set(reaped);
    }

    /// A thread of a mirror maps a page, or pins it for a while.
    pub(super) fn mirror(&self, number: usize) {
        let Mirrored { device, user, .. } = &self.mirrors[number];
        match device {
            AnyDevice::Device(device) => device.fault(*user, &self.mm, SHARED),
            AnyDevice::Kvm(kvm) => kvm.fault(*user, &self.mm, SHARED),
            AnyDevice::Pinning(pinning) => {
                pinning.pin(*user, &self.mm, SHARED);
                sync::yield_now();
                pinning.unpin();
            }
        }
    }

    /// The worker of a device has a job.
    pub(super) fn work(&self, number: usize) {
        let Mirrored { device, worker, .. } = &self.mirrors[number];
        if let AnyDevice::Device(device) = device {
            device.work(*worker);
        }
    }

    /// The victim exits.
    pub(super) fn exit(&self) {
        self.mm.exit(self.victim);
    }

    /// A thread of the victim changes VMAs.
    pub(super) fn map(&self) {
        let held = self.mm.mmap_lock.write(self.mapper);
        // It goes on without, if need be.
        let _ = self.reclaim.alloc(self.mapper);
        drop(held);
    }

    /// Checks what must hold once all actors are done.
    pub(super) fn at_rest(&self) {
        for fault in self.pages.faults() {
            let invariant = match fault {
                Fault::FreedWhileMapped { .. } => Holds::FreedAfterLastInvalidation,
                Fault::FreedTwice(_) => Holds::NothingFreedTwice,
            };
            self.run.violate(invariant, format!("{fault:?}"));
        }
        for (number, subscribed) in self.mm.notifiers().all().iter().enumerate() {
            let (starts, ends) = subscribed.counts();
            if starts != ends {
                let what = format!("notifier {number} was started {starts} times, ended {ends}");
                self.run.violate(Holds::EachStartHasOneEnd, what);
            }
        }
        self.check_frees();
        self.check_what_was_reaped();
        if self.mirrors.iter().any(|mirrored| !mirrored.device.is_at_rest()) {
            let what = "a device waits for the end of an invalidation".to_owned();
            self.run.violate(Holds::EachStartHasOneEnd, what);
        }
    }

    fn check_frees(&self) {
        let vmas = self.mm.vmas();
        let all: u64 = vmas.iter().map(|vma| vma.range().end - vma.range().start).sum();
        let resident: u64 = vmas.iter().map(|vma| vma.resident()).sum();
        let (left, freed) = (all - resident, self.pages.freed());
        if freed != left {
            let what = format!("{left} pages have left the address space, {freed} are freed");
            self.run.violate(Holds::WhatLeavesIsFreed, what);
        }
    }

    fn check_what_was_reaped(&self) {
        let scenario = self.setting.scenario;
        if scenario.exits {
            return;
        }
        let [own, _, huge] = self.mm.vmas() else { return };
        if huge.resident() == 0 {
            let what = "a huge page is reaped".to_owned();
            self.run.violate(Holds::OnlyPrivateMemoryIsReaped, what);
        }
        let is_promised = self.setting.scheme.looks_at_the_range() && !scenario.maps;
        if is_promised && own.resident() > 0 {
            let what = format!("{:?}", self.reaped.get());
            self.run.violate(Holds::UnmirroredMemoryIsReaped, what);
        }
    }
}
