// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The functions of a C library that compiled code calls. They use `rep`, because the compiler may turn a loop
//! in Rust into a call of the function that it is in.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.builtins, "ax", @progbits
    .globl memcpy, memmove, memset, memcmp, bcmp, strlen
memcpy:
    mov %rdi, %rax
    mov %rdx, %rcx
    rep movsb
    ret
memmove:
    mov %rdi, %rax
    mov %rdx, %rcx
    mov %rdi, %r8
    sub %rsi, %r8
    cmp %rdx, %r8                   # unsigned: the target begins within the source
    jb 1f
    rep movsb
    ret
1:  lea -1(%rdi, %rdx), %rdi
    lea -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
memset:
    mov %rdi, %r8
    mov %esi, %eax
    mov %rdx, %rcx
    rep stosb
    mov %r8, %rax
    ret
strlen:
    mov $-1, %rax
1:  inc %rax
    cmpb $0, (%rdi, %rax)
    jne 1b
    ret
bcmp:
memcmp:
    xor %eax, %eax
    mov %rdx, %rcx
    test %rcx, %rcx
    jz 2f
    repe cmpsb
    je 2f
    movzbl -1(%rdi), %eax
    movzbl -1(%rsi), %ecx
    sub %ecx, %eax
2:  ret
    "#,
    options(att_syntax)
);
