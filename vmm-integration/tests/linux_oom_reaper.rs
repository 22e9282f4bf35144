// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The OOM reaper of a real guest frees memory that KVM maps, of a process that does not exit.

use guest_agent::ProcessEnd;
use guest_agent::victim::{MemoryUser, VictimMemory, VictimPlan, VictimState};
use vmm_integration::vmm::qemu::{self, Accel, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const VICTIM_BYTES: u64 = 64 * MIB;
const MODULES: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn oom_victim_in_kvm_is_reaped_before_its_exit() {
    let config = GuestConfig {
        memory_bytes: 256 * MIB,
        modules: MODULES.map(|path| format!("kernel/{path}")).to_vec(),
        // QEMU emulates the virtualization of AMD, whatever the host has.
        accel: Some(Accel::Tcg),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&qemu::available().unwrap(), config).unwrap();
    let agent = guest.agent();
    for name in ["irqbypass", "kvm", "kvm-amd"] {
        agent.load_module(name, "").unwrap();
    }
    assert!(agent.victim(false).is_err(), "there is none");
    assert!(agent.start_victim(&VictimPlan::default()).is_err(), "it has no memory");
    let memory = VictimMemory { bytes: VICTIM_BYTES, user: MemoryUser::Kvm, ..Default::default() };
    let plan = VictimPlan { memory: vec![memory], lockers: 0 };
    agent.start_victim(&plan).unwrap();
    assert!(agent.start_victim(&plan).is_err(), "one at a time");
    let pid = agent.victim(false).unwrap().pid;
    let anonymous = || -> u64 {
        let text = agent.read_file(&format!("/proc/{pid}/smaps_rollup")).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    assert!(anonymous() >= VICTIM_BYTES);

    // It fits once half of the victim's memory is free, and is next to be killed if that stays.
    let free = agent.meminfo().unwrap().bytes("MemFree") / 4096 * 4096;
    assert_eq!(agent.use_memory(free + VICTIM_BYTES / 2).unwrap(), ProcessEnd::Done);
    assert_eq!(agent.victim(false).unwrap().state, VictimState::Stopped);
    assert!(anonymous() < MIB);
    assert_eq!(agent.victim(true).unwrap().state, VictimState::Ended("SIGKILL".to_owned()));
    assert_eq!(guest.quit().unwrap(), "", "QEMU has nothing to complain about");
}
