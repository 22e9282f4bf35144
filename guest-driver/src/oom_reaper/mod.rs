// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The OOM reaper (`mm/oom_kill.c`), and secondary MMUs that it must not wait for.
//!
//! The reaper frees the private memory of a process that the OOM killer has chosen, so that allocations go on
//! although the process cannot exit yet. Before a page is freed, each secondary MMU that maps it must have
//! dropped it. A driver that holds its lock over an allocation may wait for the reaper: if the reaper waited
//! for that lock, neither would go on. A [`Scheme`] says what it does instead.
//!
//! | file | |
//! |---|---|
//! | `scheme` | the schemes, and mistakes of the reaper |
//! | `reaper` | the reaper |
//! | `devices` | secondary MMUs: a device with a lock, KVM, a device that pins |
//! | `measure` | what each scheme reaps, in virtual time, beside closed forms |

mod devices;
#[cfg(all(feature = "std", not(feature = "shuttle")))]
pub mod measure;
mod reaper;
mod scheme;

pub use devices::{Device, DeviceFlaw, Kvm, KvmFlaw, Over, Pinning, Setup};
pub use reaper::{Config, Event, Reaped, Reaper};
pub use scheme::{Flaw, Scheme};

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
