// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Maps what the start code has not: memory from 4 GiB on, one to one.

use alloc::boxed::Box;
use core::arch::asm;

const ENTRIES: usize = 512;
const PAGE_SHIFT: u32 = 21;
/// Bytes of a page here.
const PAGE: u64 = 1 << PAGE_SHIFT;
/// Present, writable.
const TABLE: u64 = 0x03;
/// Present, writable, 2 MiB.
const RAM_PAGE: u64 = 0x83;
/// The same, not cached.
const DEVICE_PAGE: u64 = 0x93;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[repr(C, align(4096))]
struct Table([u64; ENTRIES]);

unsafe extern "C" {
    static mut pml4: Table;
}

/// Maps the page that holds `at`; one that is mapped keeps its kind.
fn map(at: u64, kind: u64) {
    let index = |shift: u32| (at >> shift) as usize % ENTRIES;
    let mut table = &raw mut pml4;
    for shift in [39, 30] {
        // SAFETY: one CPU, and no other reference to a table exists. Tables are mapped one to one.
        let entry = unsafe { &mut (*table).0[index(shift)] };
        if *entry == 0 {
            let new = Box::leak(Box::new(Table([0; ENTRIES])));
            *entry = &raw mut *new as u64 | TABLE;
        }
        table = (*entry & ADDRESS) as *mut Table;
    }
    // SAFETY: as above.
    let entry = unsafe { &mut (*table).0[index(PAGE_SHIFT)] };
    if *entry == 0 {
        *entry = at & !(PAGE - 1) | kind;
    }
    // SAFETY: an address that was not mapped may not be cached as such, but this costs nothing.
    unsafe { asm!("invlpg [{}]", in(reg) at, options(nostack, preserves_flags)) };
}

/// Maps the page of a device's registers that holds `at`.
pub(crate) fn map_device(at: u64) {
    map(at, DEVICE_PAGE);
}

/// Maps memory from `start` up to `end`.
pub(crate) fn map_ram(start: u64, end: u64) {
    (start & !(PAGE - 1)..end).step_by(PAGE as usize).for_each(|at| map(at, RAM_PAGE));
}
