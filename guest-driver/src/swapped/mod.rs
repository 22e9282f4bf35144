// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Values that are swapped for an updated copy as a whole, while others read them. When may the old copy be
//! freed?
//!
//! | file | |
//! |---|---|
//! | [`slots`] | the memory of the copies, which finds a use after free |
//! | [`mod@pointer`] | the pointer to the current one |
//! | [`counted`] | freed with the last reference, by an atomic count in the copy |
//! | [`epochs`] | freed when all readers of before are through, by counts a CPU and epoch |
//! | [`rwsem`] | replaced while none reads, by a lock |
//! | [`supply`] | the memory for the next copy, which can run out |
//!
//! Which memory orderings the first two need is tested in the package `litmus`.

pub mod counted;
pub mod epochs;
pub mod pointer;
pub mod rwsem;
pub mod slots;
pub mod supply;

pub use counted::{CountedFlaw, Counts};
pub use epochs::{EpochFlaw, Epochs, Section};
pub use pointer::{Grace, Pointer};
pub use rwsem::RwSem;
pub use slots::{Handle, Slots};
pub use supply::{NoMemory, Supply};
