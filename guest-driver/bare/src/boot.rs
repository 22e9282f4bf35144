// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the PVH entry point to Rust (Xen's "x86/HVM direct boot ABI").
//!
//! The VMM enters in 32-bit mode without paging, with the address of the start info in EBX. The code clears
//! `.bss`, maps the low 4 GiB one to one by pages of 2 MiB, and enters long mode.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                  # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .globl pml4
pml4: .skip 0x1000
pdpt: .skip 0x1000
pd:   .skip 0x4000
stack_bottom: .skip 0x40000
stack_top:

    .section .text.boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    mov %ebx, %esi
    mov $bss_start, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    shr $2, %ecx
    xor %eax, %eax
    rep stosl
    movl $(pdpt + 3), pml4          # present, writable
    movl $(pd + 0x0003), pdpt
    movl $(pd + 0x1003), pdpt + 8
    movl $(pd + 0x2003), pdpt + 16
    movl $(pd + 0x3003), pdpt + 24
    mov $pd, %edi
    mov $0x83, %eax                 # present, writable, 2 MiB
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    cmp $(pd + 0x4000), %edi
    jne 1b
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x620, %eax                 # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xc0000080, %ecx           # EFER.LME
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $0xfffffffb, %eax           # not EM
    or $0x80000003, %eax            # PG, MP, PE
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $2f
    .code64
2:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_top, %esp
    xor %ebp, %ebp
    mov %esi, %edi
    call rust_start
3:  hlt
    jmp 3b
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer: .word 23
    .long gdt
    "#,
    options(att_syntax)
);
