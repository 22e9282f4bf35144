// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whole guests: Linux in QEMU, user-mode Linux, and the model.

mod complete_guest;
mod drivers;
mod every_vmm;
mod faults;
mod huge_balloon;
mod model_guest;
mod model_soak;
mod out_of_memory;
mod race;
mod real_guest;
mod user_mode_linux;
