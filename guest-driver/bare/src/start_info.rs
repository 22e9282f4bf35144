// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM says of the machine (`struct hvm_start_info` of the PVH boot protocol).

use core::ptr::slice_from_raw_parts;

const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;

/// The start info, version 1.
#[repr(C)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    modules_at: u64,
    command_line_at: u64,
    rsdp_at: u64,
    map_at: u64,
    map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

/// RAM from `start` up to `end`, addresses in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RamRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl StartInfo {
    /// The start info at `address`; none if it is something else or too old to have a memory map.
    ///
    /// # Safety
    /// `address` is what the VMM passed, and is mapped.
    pub(crate) unsafe fn at(address: u64) -> Option<&'static Self> {
        // SAFETY: the caller's promise; nothing writes it.
        let info = unsafe { (address as *const Self).as_ref() }?;
        (info.magic == MAGIC && info.version >= 1).then_some(info)
    }

    /// Its RAM.
    pub(crate) fn ram(&self) -> impl Iterator<Item = RamRange> {
        let map = slice_from_raw_parts(self.map_at as *const MapEntry, self.map_entries as usize);
        // SAFETY: the VMM's own table, which nothing writes.
        let map = unsafe { &*map };
        map.iter().filter(|entry| entry.kind == RAM).map(|entry| RamRange {
            start: entry.start,
            end: entry.start.saturating_add(entry.bytes),
        })
    }

    /// The kernel command line.
    pub(crate) fn command_line(&self) -> &'static [u8] {
        if self.command_line_at == 0 {
            return b"";
        }
        // SAFETY: the VMM ends it with a zero byte.
        unsafe { core::ffi::CStr::from_ptr(self.command_line_at as *const _) }.to_bytes()
    }
}
