// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names the instruction that faulted, and powers off. Without it the machine resets in silence.

use core::arch::{asm, global_asm};

use crate::power;
use crate::serial::say;

/// Exceptions that the processor defines.
const VECTORS: usize = 32;

global_asm!(
    r#"
    .section .text.exceptions, "ax", @progbits
    .globl exception_stubs
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21
    push $0                         # no error code comes with it
    .endif
    push $vector
    jmp exception_common
    .set vector, vector + 1
    .endr
exception_common:
    mov (%rsp), %rdi
    mov 8(%rsp), %rsi
    mov 16(%rsp), %rdx
    and $-16, %rsp
    call rust_exception
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static exception_stubs: u8;
}

/// An interrupt gate (Intel SDM, volume 3, 7.14.1).
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    stack: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

impl Gate {
    /// The code segment of the start code.
    const CODE: u16 = 8;
    /// Present, 64-bit interrupt gate.
    const INTERRUPT: u8 = 0x8e;
    const ABSENT: Self = Self {
        offset_low: 0,
        selector: 0,
        stack: 0,
        kind: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    };

    fn to(handler: u64) -> Self {
        Self {
            offset_low: handler as u16,
            selector: Self::CODE,
            kind: Self::INTERRUPT,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            ..Self::ABSENT
        }
    }
}

static mut GATES: [Gate; VECTORS] = [Gate::ABSENT; VECTORS];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Makes the processor call the stubs.
pub(crate) fn install() {
    let stubs = &raw const exception_stubs as u64;
    let gates = &raw mut GATES;
    for vector in 0..VECTORS {
        // SAFETY: one CPU, before the table is loaded; the stubs are 16 bytes apart.
        unsafe { (*gates)[vector] = Gate::to(stubs + 16 * vector as u64) };
    }
    let pointer = Pointer { limit: (size_of::<[Gate; VECTORS]>() - 1) as u16, base: gates as u64 };
    // SAFETY: the table is static and complete.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) };
}

#[unsafe(no_mangle)]
extern "C" fn rust_exception(vector: u64, error_code: u64, instruction: u64) -> ! {
    let address: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    say!(
        "failed exception {vector}, error code {error_code:#x}, at {instruction:#x}, page fault address {address:#x}"
    );
    power::off()
}
