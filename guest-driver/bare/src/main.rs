// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest model as a guest of its own: a PVH image with no operating system beneath it.
//!
//! The model's page frames are the memory of this machine. The guest finds the balloon device on PCI, drives it by
//! polling, and does what its kernel command line says. Each result is a line on the serial port that begins
//! with `bare:`; the last one is `bare: done` or `bare: failed`.
//!
//! | file | what |
//! |---|---|
//! | `boot`, `builtins` | the entry point, and what the compiler expects of a C library |
//! | `exceptions` | says which instruction faulted |
//! | `start_info` | what the VMM says of the machine |
//! | `paging`, `ports`, `serial`, `power`, `clock` | the machine |
//! | `pci`, `transport` | the virtio device |
//! | `device` | the balloon's driver with its queues |
//! | `ram`, `contents` | guest memory and the pattern in it |
//! | `claims` | the detector of stale data |
//! | `options` | the kernel command line |
//! | `life`, `serve` | what the guest does |

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod builtins;
mod claims;
mod clock;
mod contents;
mod device;
mod exceptions;
mod life;
mod options;
mod paging;
mod pci;
mod ports;
mod power;
mod ram;
mod serial;
mod serve;
mod start_info;
mod transport;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use linked_list_allocator::LockedHeap;

use crate::options::Options;
use crate::serial::say;
use crate::start_info::{RamRange, StartInfo};

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Memory below this address holds image, heap and rings. It is one section of the model, which has all
/// others.
const OWN_BYTES: u64 = 128 << 20;
/// The heap begins at a multiple of this.
const HEAP_ALIGN: u64 = 1 << 20;
/// The most RAM ranges and bytes of command line that are read.
const MOST_RANGES: usize = 16;
const MOST_LINE: usize = 2048;

unsafe extern "C" {
    static image_end: u8;
}

/// Called by the start code with the physical address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn rust_start(start_info: u64) -> ! {
    exceptions::install();
    // SAFETY: the start code passes what the VMM left in EBX; memory below 4 GiB is mapped.
    let info = unsafe { StartInfo::at(start_info) };
    let Some(info) = info else { fail("the VMM passed no PVH start info") };
    // Copied to the stack first: the heap may lie over what the VMM left there.
    let mut line = [0_u8; MOST_LINE];
    let text = info.command_line();
    let len = text.len().min(line.len());
    line[..len].copy_from_slice(&text[..len]);
    let mut ranges = [RamRange::default(); MOST_RANGES];
    let mut count = 0;
    for (slot, range) in ranges.iter_mut().zip(info.ram()) {
        *slot = range;
        count += 1;
    }

    let from = (&raw const image_end as u64).next_multiple_of(HEAP_ALIGN);
    if !ranges[..count].iter().any(|ram| ram.start <= from && OWN_BYTES <= ram.end) {
        fail("the first 128 MiB behind the image are not RAM");
    }
    // SAFETY: RAM behind the image, which nothing else uses from here on.
    unsafe { HEAP.lock().init(from as *mut u8, (OWN_BYTES - from) as usize) };

    let result = match core::str::from_utf8(&line[..len]) {
        Ok(line) => start(line, ranges[..count].to_vec()),
        Err(_) => Err("the command line is not UTF-8".to_string()),
    };
    match result {
        Ok(()) => say!("done"),
        Err(error) => fail(&error),
    }
    power::off()
}

fn start(line: &str, ram: Vec<RamRange>) -> Result<(), String> {
    let options = Options::parse(line)?;
    // Without a PIT there may be something else that answers for it, and never says that time is over.
    let khz = options.tsc_khz.or_else(clock::measure).ok_or(
        "the rate of the time stamp counter is unknown: there is no PIT (got no tsc-khz=)",
    )?;
    clock::start(khz);
    guest_driver::time::set_clock(clock::now);
    life::run(&options, ram, khz)
}

fn fail(error: &str) -> ! {
    say!("failed {error}");
    power::off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("failed {info}");
    power::off()
}

/// `core` was built to unwind; nothing here does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::off()
}
