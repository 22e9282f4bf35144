// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use guest_driver::oom_reaper::{DeviceFlaw, Flaw, KvmFlaw, Scheme};

/// A scenario under one scheme.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The actors, and what they share.
    pub scenario: Scenario,
    /// What the reaper does about notifiers.
    pub scheme: Scheme,
    /// A mistake.
    pub mistake: Option<Mistake>,
}

/// A mistake of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Of the reaper, or of the core.
    Reaper(Flaw),
    /// Of a device's driver.
    Device(DeviceFlaw),
    /// Of KVM.
    Kvm(KvmFlaw),
    /// A device that pins takes no reference.
    Pin,
}

/// What mirrors the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// A device whose driver allocates with its lock held.
    Allocates,
    /// A device whose driver waits for its worker with its lock held; the worker allocates.
    Flushes,
    /// The same, but the worker uses nothing that the device maps.
    Waits,
    /// KVM.
    Kvm,
    /// A device that pins.
    Pins,
}

/// The actors, and what they share.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// What mirrors the address space, each with a thread that maps a page.
    pub mirrors: &'static [Mirror],
    /// The victim exits.
    pub exits: bool,
    /// A thread of the victim changes VMAs, and allocates with the mmap lock held.
    pub maps: bool,
    /// Pages that are free at first.
    pub free: u64,
}
