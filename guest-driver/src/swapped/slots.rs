// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory for copies: slots that are used again, each with a generation that finds a use after free.
//!
//! It is type-stable, as a cache with `SLAB_TYPESAFE_BY_RCU` is: a freed slot is read without harm, as the
//! copy that was there or the one that is there now. The generation is the model's own. No kernel has it.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering as Plainly};

use super::supply::{NoMemory, Supply};
use crate::sync::{AtomicU64, OnceLock, Ordering, Plain};

/// Slots of the first chunk; each chunk has twice as many as the one before.
const FIRST_CHUNK: usize = 8;
const CHUNKS: usize = 24;

/// Where a copy is, and of which generation: a pointer that can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    slot: u32,
    generation: u32,
}

impl Handle {
    /// Whether both are of one slot: all that two pointers tell.
    pub(super) fn is_at(self, other: Self) -> bool {
        self.slot == other.slot
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    pub(super) fn unpack(packed: u64) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { slot: half(packed), generation: half(packed >> 32) }
    }
}

struct Slot<T> {
    /// Odd while it is in use.
    generation: AtomicU32,
    /// References to the copy; the pointer to it has one.
    references: AtomicU64,
    value: T,
}

#[derive(Default)]
struct Books {
    /// Slots that were in use and are not.
    free: Vec<u32>,
    /// Slots that were ever in use.
    used: u32,
    live: usize,
    peak: usize,
}

/// Slots for copies of one kind. It grows as copies are allocated.
///
/// `T` is read while it may be written, so what changes in it are atomics.
pub struct Slots<T> {
    name: &'static str,
    make: Box<dyn Fn() -> T + Send + Sync>,
    chunks: [OnceLock<Box<[Slot<T>]>>; CHUNKS],
    books: Plain<Books>,
}

impl<T> fmt::Debug for Slots<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Books { live, peak, .. } = *self.books.lock();
        let mut out = f.debug_struct("Slots");
        out.field("name", &self.name).field("live", &live).field("peak", &peak);
        out.finish_non_exhaustive()
    }
}

impl<T> Slots<T> {
    /// Slots for copies of this name; `make` builds the memory of one, whatever it holds.
    pub fn new(name: &'static str, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self {
            name,
            make: Box::new(make),
            chunks: [const { OnceLock::new() }; CHUNKS],
            books: Plain::new(Books::default()),
        }
    }

    /// Allocates a copy with one reference; `fill` writes it before another can see it.
    ///
    /// # Errors
    /// [`NoMemory`] if `supply` has none, or all slots that there can be are in use.
    pub fn allocate(&self, supply: &Supply, fill: impl FnOnce(&T)) -> Result<Handle, NoMemory> {
        supply.take()?;
        let index = {
            let mut books = self.books.lock();
            let index = match books.free.pop() {
                Some(index) => index,
                None => {
                    let index = books.used;
                    self.grow(index)?;
                    books.used += 1;
                    index
                }
            };
            books.live += 1;
            books.peak = books.peak.max(books.live);
            index
        };
        let slot = self.slot(index);
        let generation = slot.generation.fetch_add(1, Plainly::Relaxed) + 1;
        fill(&slot.value);
        // Who sees this reference sees the copy that it is of.
        slot.references.store(1, Ordering::Release);
        Ok(Handle { slot: index, generation })
    }

    /// Makes room for the slot of this index.
    fn grow(&self, index: u32) -> Result<(), NoMemory> {
        let (chunk, _) = place(index);
        let memory = self.chunks.get(chunk).ok_or(NoMemory)?;
        if memory.get().is_none() {
            let fresh = || Slot {
                generation: AtomicU32::new(0),
                references: AtomicU64::new(0),
                value: (self.make)(),
            };
            let made = core::iter::repeat_with(fresh).take(FIRST_CHUNK << chunk).collect();
            memory.set(made).map_err(|_| NoMemory)?;
        }
        Ok(())
    }

    fn slot(&self, index: u32) -> &Slot<T> {
        let (chunk, within) = place(index);
        match self.chunks[chunk].get() {
            Some(slots) => &slots[within],
            None => panic!("use after free: {} {index} was never allocated", self.name),
        }
    }

    /// The copy that `handle` points to.
    ///
    /// # Panics
    /// With `use after free: `, if it has been freed.
    pub fn get(&self, handle: Handle) -> &T {
        self.check(handle, "read");
        &self.slot(handle.slot).value
    }

    /// Frees the copy at once, although readers refer to it.
    ///
    /// # Panics
    /// With `use after free: `, if it has been freed.
    pub fn free(&self, handle: Handle) {
        self.check(handle, "freed");
        let slot = self.slot(handle.slot);
        slot.references.store(0, Ordering::Relaxed);
        slot.generation.fetch_add(1, Plainly::Relaxed);
        let mut books = self.books.lock();
        books.live -= 1;
        books.free.push(handle.slot);
    }

    fn check(&self, handle: Handle, what: &str) {
        let now = self.slot(handle.slot).generation.load(Plainly::Relaxed);
        assert!(now == handle.generation, "use after free: {}", self.misuse(handle, now, what));
    }

    fn misuse(&self, handle: Handle, now: u32, what: &str) -> String {
        let Handle { slot, generation } = handle;
        let (copy, state) =
            (generation.div_ceil(2), if now.is_multiple_of(2) { "free" } else { "another's" });
        format!("copy {copy} in {} {slot} is {what}, and the slot is {state} now", self.name)
    }

    /// Copies that are not freed.
    pub fn live(&self) -> usize {
        self.books.lock().live
    }

    /// Bytes of the copies that are not freed, without what a copy points to.
    pub fn bytes(&self) -> usize {
        self.live() * size_of::<Slot<T>>()
    }

    /// The most that there were at once.
    pub fn peak(&self) -> usize {
        self.books.lock().peak
    }

    /// Adds a reference, unless there is none (`refcount_inc_not_zero`). It says nothing of which copy the
    /// slot holds.
    pub(super) fn add_reference_unless_none(&self, handle: Handle) -> bool {
        let add = |count: u64| (count > 0).then_some(count + 1);
        let references = &self.slot(handle.slot).references;
        references.fetch_update(Ordering::Acquire, Ordering::Relaxed, add).is_ok()
    }

    /// Adds a reference to whatever the slot holds.
    pub(super) fn add_reference(&self, handle: Handle) {
        self.slot(handle.slot).references.fetch_add(1, Ordering::Acquire);
    }

    /// Drops a reference to the copy, and with the last one the copy (`refcount_dec_and_test`).
    pub(super) fn drop_reference(&self, handle: Handle) {
        self.check(handle, "let go");
        self.drop_reference_in(handle);
    }

    /// Drops a reference to whatever the slot holds. It cannot be freed before that.
    pub(super) fn drop_reference_in(&self, handle: Handle) {
        let slot = self.slot(handle.slot);
        let generation = slot.generation.load(Plainly::Relaxed);
        // Reads of the copy come before it is freed.
        if slot.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.free(Handle { generation, ..handle });
        }
    }
}

/// The chunk of a slot, and which of that it is.
fn place(index: u32) -> (usize, usize) {
    let index = index as usize + FIRST_CHUNK;
    let chunk = index.ilog2() - FIRST_CHUNK.ilog2();
    (chunk as usize, index - (FIRST_CHUNK << chunk))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn slots() -> Slots<AtomicU64> {
        Slots::new("number", || AtomicU64::new(0))
    }

    fn allocate(slots: &Slots<AtomicU64>, value: u64) -> Handle {
        let fill = |number: &AtomicU64| number.store(value, Plainly::Relaxed);
        slots.allocate(&Supply::new(), fill).expect("there is memory")
    }

    /// What a panic says.
    fn misuse(of: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(of)).expect_err("a misuse");
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn freed_slot_is_used_again_and_found() {
        let slots = slots();
        let old = allocate(&slots, 1);
        slots.free(old);
        let read = misuse(|| _ = slots.get(old));
        assert_eq!(read, "use after free: copy 1 in number 0 is read, and the slot is free now");
        let new = allocate(&slots, 2);
        assert!(new.is_at(old) && new != old);
        assert_eq!(slots.get(new).load(Plainly::Relaxed), 2);
        let read = misuse(|| _ = slots.get(old));
        assert_eq!(
            read,
            "use after free: copy 1 in number 0 is read, and the slot is another's now"
        );
    }

    #[test]
    fn copy_freed_twice_is_found() {
        let slots = slots();
        let old = allocate(&slots, 1);
        slots.free(old);
        let freed = misuse(|| slots.free(old));
        assert_eq!(freed, "use after free: copy 1 in number 0 is freed, and the slot is free now");
    }

    #[test]
    fn slots_grow_and_keep_their_places() {
        let slots = slots();
        let all: Vec<Handle> = (0..100).map(|number| allocate(&slots, number)).collect();
        for (number, &handle) in (0..).zip(&all) {
            assert_eq!(slots.get(handle).load(Plainly::Relaxed), number);
        }
        all.iter().for_each(|&handle| slots.free(handle));
        assert_eq!((slots.live(), slots.peak()), (0, 100));
    }

    #[test]
    fn allocation_without_memory_takes_no_slot() {
        let (slots, supply) = (slots(), Supply::new());
        supply.fail_after(0);
        assert_eq!(slots.allocate(&supply, |_| {}), Err(NoMemory));
        assert_eq!((slots.live(), slots.peak()), (0, 0));
    }

    #[test]
    fn handle_survives_packing() {
        let handle = Handle { slot: 7, generation: u32::MAX };
        assert_eq!(Handle::unpack(handle.pack()), handle);
    }
}
