// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A pointer to the current copy, and when a copy that it no longer leads to is freed.

use super::slots::{Handle, Slots};
use crate::sync::{AtomicU64, Ordering};

const NULL: u64 = u64::MAX;

/// A pointer to the current copy, or to none.
#[derive(Debug)]
pub struct Pointer(AtomicU64);

impl Pointer {
    /// Points to `copy`.
    pub fn new(copy: Option<Handle>) -> Self {
        Self(AtomicU64::new(copy.map_or(NULL, Handle::pack)))
    }

    /// Where it points to now. It is a full barrier with [`Pointer::swap`] and the counts of
    /// [`Epochs`](super::Epochs).
    pub fn load(&self) -> Option<Handle> {
        Some(self.0.load(Ordering::SeqCst)).filter(|&packed| packed != NULL).map(Handle::unpack)
    }

    /// Points to `next` from now on. Returns where it did before. One update at a time.
    #[must_use = "what it pointed to is never freed"]
    pub fn swap(&self, next: Option<Handle>) -> Option<Handle> {
        let old = self.0.swap(next.map_or(NULL, Handle::pack), Ordering::SeqCst);
        Some(old).filter(|&packed| packed != NULL).map(Handle::unpack)
    }
}

/// When a copy that was swapped out is freed.
pub trait Grace<T>: Send + Sync {
    /// What a reader has from its begin to its end.
    type Section;

    /// A reader on `cpu` begins.
    fn enter(&self, cpu: usize) -> Self::Section;

    /// The current copy, which stays until it is released.
    fn hold(&self, slots: &Slots<T>, pointer: &Pointer) -> Option<Handle>;

    /// The reader needs the copy no more.
    fn release(&self, slots: &Slots<T>, copy: Handle);

    /// The reader is through, and has released all that it held.
    fn leave(&self, section: Self::Section);

    /// No pointer leads to `old` any more.
    fn retire(&self, slots: &Slots<T>, old: Handle);

    /// Frees what may be freed and waits to be.
    fn flush(&self, _slots: &Slots<T>) {}

    /// Bytes that it takes beside those of the copies.
    fn bytes(&self) -> usize {
        0
    }
}
