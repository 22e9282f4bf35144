// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The process itself.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use guest_agent::pattern;
use guest_agent::victim::{MemoryKind, MemoryUser, VictimMemory, VictimPlan};
use nix::unistd::pause;

use super::pin::Pin;
use super::virtual_machine::VirtualMachine;
use crate::memory::Mapping;
use crate::system;

/// Makes the program run as such a process.
pub(crate) const ROLE: &str = "oom-victim";
/// What it prints when its memory is in use.
pub(super) const READY: &str = "ready";
/// Chosen before any other process.
const FIRST: &str = "1000";

/// Starts one.
pub(super) fn start(plan: &VictimPlan) -> Result<Child> {
    Command::new("/proc/self/exe")
        .args([ROLE, &serde_json::to_string(plan)?])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a victim")
}

/// Is such a process.
pub(crate) fn run(mut args: impl Iterator<Item = String>) -> Result<()> {
    let plan = args.next().context("no plan")?;
    let plan: VictimPlan = serde_json::from_str(&plan).context("the plan")?;
    system::write_file("/proc/self/oom_score_adj", FIRST)?;
    let (mut of_kvm, mut pinned, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for memory in &plan.memory {
        let mapping = map(memory)?;
        match memory.user {
            MemoryUser::None => others.push(mapping),
            MemoryUser::Kvm => of_kvm.push(mapping),
            MemoryUser::Pinned => pinned.push(mapping),
        }
    }
    let machine = VirtualMachine::over(&mut of_kvm)?;
    let pin = Pin::of(&pinned)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{READY}").and_then(|()| output.flush()).context("saying that it is ready")?;
    loop {
        pause();
        // Neither ends before the process does.
        std::hint::black_box((&machine, &pin, &of_kvm, &pinned, &others));
    }
}

fn map(memory: &VictimMemory) -> Result<Mapping> {
    let mut mapping = match memory.kind {
        MemoryKind::Private => Mapping::new(memory.bytes),
        MemoryKind::Shared => Mapping::shared(memory.bytes),
        MemoryKind::Hugetlb => Mapping::of_huge_pages(memory.bytes),
    }
    .with_context(|| format!("mapping {memory:?}"))?;
    pattern::fill(mapping.words_mut(), 0, 1);
    Ok(mapping)
}
