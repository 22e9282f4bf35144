// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whole guests: Linux in QEMU, user-mode Linux, the model, and the model on bare metal.

mod bare_guest;
mod complete_guest;
mod doctor;
mod drivers;
mod every_vmm;
mod faults;
mod huge_balloon;
mod isolation;
mod model;
mod model_guest;
mod model_reporter;
mod model_soak;
mod operate;
mod out_of_memory;
mod own_device;
mod own_device_libvirt;
mod own_device_qtest;
mod race;
mod real_guest;
mod reclaim;
mod user_mode_linux;

/// Lets one test at a time raise the pool of huge pages: another would take pages for free that a
/// guest is about to map.
fn huge_pages() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
