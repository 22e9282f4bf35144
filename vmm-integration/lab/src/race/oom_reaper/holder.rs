// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What uses the memory of the killed process, and what the model says of it.

use guest_agent::victim::{MemoryKind, MemoryUser, VictimMemory, VictimPlan};

/// Threads that keep the lock of an address space taken: one writes, the others wait.
const LOCKERS: u32 = 3;
/// Attempts of a reaper that never gets the lock (`MAX_OOM_REAP_RETRIES`).
const ALL_ATTEMPTS: u64 = 10;

/// What uses the memory of the killed process, or keeps the reaper from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Holder {
    /// Nothing.
    NoNotifier,
    /// A virtual machine of KVM, all of it.
    Kvm,
    /// The same, half of it.
    KvmHalf,
    /// A kernel subsystem that pins all of it.
    Pinned,
    /// Half of it is shared.
    SharedHalf,
    /// All of it is of huge pages.
    Hugetlb,
    /// The lock of the address space is always taken.
    LockHeld,
}

/// What the model says (`guest_driver::oom_reaper`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Expected {
    /// The share of the memory that the reaper unmaps.
    pub(super) unmapped: f64,
    /// The attempts that it takes.
    pub(super) attempts: u64,
    /// Whether another process must be killed, because too little became free.
    pub(super) another_victim: bool,
}

impl Holder {
    /// The process with so much memory.
    pub(super) fn plan(self, bytes: u64) -> VictimPlan {
        let all = VictimMemory { bytes, ..VictimMemory::default() };
        let half = VictimMemory { bytes: bytes / 2, ..all };
        let memory = match self {
            Self::NoNotifier | Self::LockHeld => vec![all],
            Self::Kvm => vec![VictimMemory { user: MemoryUser::Kvm, ..all }],
            Self::KvmHalf => vec![VictimMemory { user: MemoryUser::Kvm, ..half }, half],
            Self::Pinned => vec![VictimMemory { user: MemoryUser::Pinned, ..all }],
            Self::SharedHalf => vec![VictimMemory { kind: MemoryKind::Shared, ..half }, half],
            Self::Hugetlb => vec![VictimMemory { kind: MemoryKind::Hugetlb, ..all }],
        };
        let lockers = if self == Self::LockHeld { LOCKERS } else { 0 };
        VictimPlan { memory, lockers }
    }

    /// Whether the guest needs KVM.
    pub(super) fn needs_kvm(self) -> bool {
        matches!(self, Self::Kvm | Self::KvmHalf)
    }

    /// Bytes of so much memory that KVM maps; none without KVM.
    pub(super) fn kvm_bytes(self, bytes: u64) -> Option<u64> {
        let plan = self.plan(bytes);
        let of_kvm = plan.memory.iter().filter(|memory| memory.user == MemoryUser::Kvm);
        self.needs_kvm().then(|| of_kvm.map(|memory| memory.bytes).sum())
    }

    pub(super) fn expected(self) -> Expected {
        let once = |unmapped| Expected { unmapped, attempts: 1, another_victim: false };
        match self {
            // KVM's step never fails, so that its notifier changes nothing.
            Self::NoNotifier | Self::Kvm | Self::KvmHalf => once(1.0),
            // Unmapped, and freed by the last unpin.
            Self::Pinned => Expected { another_victim: true, ..once(1.0) },
            // Only private memory is reaped.
            Self::SharedHalf => once(0.5),
            Self::Hugetlb => Expected { another_victim: true, ..once(0.0) },
            Self::LockHeld => {
                Expected { unmapped: 0.0, attempts: ALL_ATTEMPTS, another_victim: true }
            }
        }
    }
}
