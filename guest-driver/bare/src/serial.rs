// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first serial port (16550).

use core::fmt;

use crate::ports::{inb, outb};

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const RECEIVED: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Looks at the transmitter ahead of a byte: a port that is never ready must not hang the guest.
const PATIENCE: u32 = 100_000;

/// Where the guest's lines go.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: a serial port has no access to memory.
            unsafe {
                let mut left = PATIENCE;
                while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 && left > 0 {
                    left -= 1;
                }
                outb(DATA, byte);
            }
        }
        Ok(())
    }
}

/// A byte that the host has sent.
pub(crate) fn received() -> Option<u8> {
    // SAFETY: a serial port has no access to memory. A port that is not there reads as all ones.
    unsafe {
        let status = inb(LINE_STATUS);
        (status != u8::MAX && status & RECEIVED != 0).then(|| inb(DATA))
    }
}

/// Prints a line for the host.
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the port cannot fail.
        let _ = core::writeln!($crate::serial::Serial, "bare: {}", format_args!($($arg)*));
    }};
}
pub(crate) use say;
