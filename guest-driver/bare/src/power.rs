// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way out.

use core::arch::asm;

use crate::ports::{outb, outw};

/// cloud-hypervisor's and alioth's sleep control, with the bits for S5. On QEMU's q35 it is a status register.
const SLEEP_CONTROL: (u16, u8) = (0x600, 0x34);
/// The PM1a control register of q35, with the bits for S5.
const PM1A_CONTROL: (u16, u16) = (0x604, 0x2000);

/// Powers the machine off, or halts it where neither register does.
pub(crate) fn off() -> ! {
    // SAFETY: nothing is left to be done. The CPU may go on for a while.
    unsafe {
        outb(SLEEP_CONTROL.0, SLEEP_CONTROL.1);
        outw(PM1A_CONTROL.0, PM1A_CONTROL.1);
        loop {
            asm!("cli", "hlt", options(nomem, nostack));
        }
    }
}
