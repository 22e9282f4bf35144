// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine of KVM, whose memory is that of the process.

use anyhow::{Context, Result, bail};
use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::memory::Mapping;

/// Writes to each page from `edi` to `esi` what is there, so that KVM maps it for writing, and halts.
/// It lies at the lowest address, and writes to the last word of a page: not to itself.
const TOUCH: [u8; 24] = [
    0x8b, 0x87, 0xfc, 0x0f, 0x00, 0x00, // again: mov eax, [edi + 0xffc]
    0x89, 0x87, 0xfc, 0x0f, 0x00, 0x00, // mov [edi + 0xffc], eax
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 0x1000
    0x39, 0xf7, // cmp edi, esi
    0x72, 0xea, // jb again
    0xf4, 0xf4, // hlt
];
/// `CR0.PE`: protected mode, without paging.
const PROTECTED_MODE: u64 = 1;
/// The bit of `rflags` that is always set.
const RFLAGS: u64 = 2;
/// The largest limit, in pages.
const LIMIT: u32 = u32::MAX;
const CODE: u8 = 0b1011;
const DATA: u8 = 0b0011;

/// The machine. KVM drops what it maps when the last descriptor is closed.
pub(super) struct VirtualMachine {
    _machine: Option<(VmFd, VcpuFd)>,
}

impl VirtualMachine {
    /// Makes one whose memory is the mappings, one behind the other, and has its CPU write to every page.
    pub(super) fn over(mappings: &mut [Mapping]) -> Result<Self> {
        if mappings.is_empty() {
            return Ok(Self { _machine: None });
        }
        let vm = Kvm::new().context("opening /dev/kvm: expected kvm and kvm-amd to be loaded")?;
        let vm = vm.create_vm().context("making a virtual machine")?;
        let mut end = 0;
        for (slot, mapping) in (0..).zip(mappings) {
            let Some((start, length)) = mapping.range() else { continue };
            if slot == 0 {
                let (code, _) = TOUCH.as_chunks();
                for (word, code) in mapping.words_mut().iter_mut().zip(code) {
                    *word = u64::from_le_bytes(*code);
                }
            }
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: end,
                memory_size: u64::try_from(length.get())?,
                userspace_addr: u64::try_from(start.as_ptr().addr())?,
                flags: 0,
            };
            // SAFETY: the mapping lives as long as the process, and its contents are of no use to it.
            unsafe { vm.set_user_memory_region(region) }.context("giving it memory")?;
            end += region.memory_size;
        }
        let mut cpu = vm.create_vcpu(0).context("making a CPU")?;
        set_registers(&cpu, end)?;
        loop {
            match cpu.run() {
                Ok(VcpuExit::Hlt) => break,
                Ok(VcpuExit::Intr) => {}
                Ok(other) => bail!("the virtual CPU did not halt (got {other:?})"),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error).context("running the virtual CPU"),
            }
        }
        Ok(Self { _machine: Some((vm, cpu)) })
    }
}

fn set_registers(cpu: &VcpuFd, end: u64) -> Result<()> {
    let mut special = cpu.get_sregs().context("asking for its special registers")?;
    let flat = |selector, type_| kvm_segment {
        limit: LIMIT,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = flat(8, CODE);
    for data in [&mut special.ds, &mut special.es, &mut special.ss] {
        *data = flat(16, DATA);
    }
    special.cr0 |= PROTECTED_MODE;
    cpu.set_sregs(&special).context("setting its special registers")?;
    let mut registers = cpu.get_regs().context("asking for its registers")?;
    (registers.rip, registers.rdi, registers.rsi, registers.rflags) = (0, 0, end, RFLAGS);
    cpu.set_regs(&registers).context("setting its registers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_jumps_back_to_its_first_instruction() {
        let jump = TOUCH.windows(2).position(|code| code[0] == 0x72).unwrap();
        let offset = i8::from_ne_bytes([TOUCH[jump + 1]]);
        assert_eq!(i64::try_from(jump).unwrap() + 2 + i64::from(offset), 0);
    }
}
