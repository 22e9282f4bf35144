// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl doctor`: what is wrong with one daemon, its VM and its host, and what to do about it.
//!
//! A pure function of the daemon's status, its counters and one setting of the host.

use serde::Serialize;
use serde_json::Value;

use crate::control::views::{MemoryView, StatusView};
use crate::device::features::NUM_QUEUES;
use crate::values::show_size;

/// Whether shared memory gets huge pages, by the host's kernel.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// One thing that the doctor has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Its name, for programs.
    pub(super) cause: &'static str,
    /// Whether memory is not reclaimed because of it; otherwise it is advice.
    pub(super) wrong: bool,
    /// What was seen.
    pub(super) seen: String,
    /// What to do.
    pub(super) remedy: &'static str,
}

/// The host's setting, as its file has it; empty if it cannot be read.
pub(super) fn host() -> String {
    std::fs::read_to_string(SHMEM_ENABLED).unwrap_or_default()
}

/// Everything that is found, the causes that stop most of the memory first.
pub(super) fn findings(status: &StatusView, counters: &Value, shmem: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut wrong =
        |cause, seen: String, remedy| found.push(Finding { cause, wrong: true, seen, remedy });
    set_up(status, &mut wrong);
    session(status, &mut wrong);
    driver(status, &mut wrong);
    operator(status, &mut wrong);
    memory(status.memory.as_ref(), &mut wrong);
    guest(status, counters, &mut wrong);
    if shmem.contains("[never]") || shmem.contains("[deny]") {
        found.push(Finding {
            cause: "huge_pages_off",
            wrong: false,
            seen: format!("{SHMEM_ENABLED} is {}", shmem.trim()),
            remedy: "the guest runs slower than with huge pages: write advise there, and have the VMM \
                     advise its memory, or use hugetlbfs with --hugetlb",
        });
    }
    found
}

fn set_up(status: &StatusView, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    let Some(refused) = &status.refused else { return };
    let (cause, remedy) = match refused.cause.as_str() {
        "memory_not_shared" => (
            "memory_not_shared",
            "QEMU: share=on at the memory backend, and -machine memory-backend=ID. libvirt: \
             <memoryBacking> with <source type='memfd'/> and <access mode='shared'/>. Then start the \
             VM again",
        ),
        "no_config_size" => {
            ("no_config_size", "give QEMU's device config_size=16, and start the VM again")
        }
        _ => ("refused", "mend the VM as the message says, and start it again"),
    };
    wrong(cause, refused.text.clone(), remedy);
}

fn session(status: &StatusView, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    if !status.connected {
        wrong(
            "no_vmm",
            "no VMM is connected".to_owned(),
            "start the VM after its daemon. QEMU connects once: after the daemon was replaced \
             without a hand-over, the VM must be started again",
        );
    }
    if status.waiting_connections > 0 {
        wrong(
            "second_vmm",
            format!("VMMs that wait for this socket: {}", status.waiting_connections),
            "start a daemon with a socket of its own for each VM",
        );
    }
}

fn driver(status: &StatusView, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    let offers = |name: &str| status.offered_features.iter().any(|feature| feature == name);
    if !offers("page_reporting") {
        wrong(
            "reporting_off",
            "the device does not offer free page reporting".to_owned(),
            "start the daemon without --no-reporting, unless you reclaim by targets only",
        );
    }
    match status.driver.as_str() {
        "no_driver" if (1..NUM_QUEUES).contains(&status.called_queues) => wrong(
            "too_few_queues",
            format!(
                "the VMM's device has {} of {NUM_QUEUES} queues, and no driver has started",
                status.called_queues
            ),
            "give QEMU's device num_vqs=5, and start the VM again",
        ),
        "no_driver" => wrong(
            "no_driver",
            "a VMM is connected, and no driver has started".to_owned(),
            "wait until the guest has booted. In the guest: modprobe virtio_balloon, and read dmesg. \
             Error -16 of a probe is a second balloon (libvirt: <memballoon model='none'/>), -28 a \
             vq_size below 32. If no probe is there, look at virtio-id=5",
        ),
        "stopped" => wrong(
            "driver_stopped",
            "the guest's driver has stopped its queues".to_owned(),
            "the guest is paused or in a reset, or its driver was unloaded: resume the VM, or load \
             virtio_balloon",
        ),
        "not_reporting" if offers("page_reporting") => not_reporting(status, wrong),
        _ => {}
    }
}

fn not_reporting(status: &StatusView, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    let acked = status.acked_features.as_deref().unwrap_or_default();
    let has = |name: &str| acked.iter().any(|feature| feature == name);
    match () {
        () if has("page_reporting") => wrong(
            "queue_missing",
            "the driver has acked reporting and not set up the reporting queue".to_owned(),
            "give the device num_vqs=5",
        ),
        // Linux that knows this bit acks it if it sees it.
        () if !has("page_poison") => wrong(
            "masked_features",
            format!("the driver has acked none of the balloon's bits: {}", acked.join(", ")),
            "the VMM masks feature bits, as cloud-hypervisor does without a patch, or the guest's \
             kernel is older than 4.20",
        ),
        () => wrong(
            "no_reporting_in_guest",
            "the driver has acked the balloon's bits without reporting".to_owned(),
            "the guest's kernel needs CONFIG_PAGE_REPORTING (Linux 5.7 or newer)",
        ),
    }
}

fn operator(status: &StatusView, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    for cause in &status.paused.paused_by {
        let (cause, remedy) = match cause.as_str() {
            "operator" => ("paused", "ctl resume"),
            "parked" => ("parked", "ctl unpark, once the VM runs again"),
            _ => ("migrating", "wait for the end of the migration"),
        };
        wrong(cause, "discarding is paused".to_owned(), remedy);
    }
    if !status.pins.is_empty() {
        let bytes = status.pins.iter().fold(0, |sum: u64, pin| sum.saturating_add(pin.bytes));
        let seen = format!("pins keep {} of the guest's memory", show_size(bytes));
        wrong("pinned", seen, "ctl unpin each of them (ctl status) once nothing needs that memory");
    }
    if let Some(why) = &status.target_refused {
        wrong("target_refused", why.clone(), "set a smaller target, or force it");
    }
}

fn memory(memory: Option<&MemoryView>, wrong: &mut impl FnMut(&'static str, String, &'static str)) {
    for region in memory.map_or(&[][..], |memory| &memory.regions) {
        let Some(reason) = region.kept_for.as_deref() else { continue };
        let (cause, remedy) = match reason {
            "hugetlb" => ("hugetlb", "start the daemon with --hugetlb: read its risk first"),
            "limited_tmpfs" => (
                "limited_tmpfs",
                "use a memfd, or start the daemon with --allow-limited-tmpfs: read its risk first",
            ),
            "cannot_punch" => (
                "cannot_punch",
                "put the guest's memory into a memfd: this file system cannot punch holes",
            ),
            "read_only" => (
                "read_only",
                "the VMM has sealed the guest's memory or opened it for reading: have it hand over \
                 memory that can be written",
            ),
            _ => ("memory_kept", "see the reason in docs/user/metrics.md"),
        };
        let seen = format!(
            "{} at {:#x} are never discarded: {reason}",
            show_size(region.bytes),
            region.address
        );
        wrong(cause, seen, remedy);
    }
}

fn guest(
    status: &StatusView,
    counters: &Value,
    wrong: &mut impl FnMut(&'static str, String, &'static str),
) {
    let skipped = |reason: &str| counters["skipped_bytes"][reason].as_u64().unwrap_or(0);
    let of = |reason| format!("{} were reported and not discarded", show_size(skipped(reason)));
    if status.driver != "no_frontend" && skipped("poisoned") > 0 {
        wrong(
            "guest_poisons",
            of("poisoned"),
            "the guest fills its free pages (page_poison=1, CONFIG_PAGE_POISONING): boot it without",
        );
    }
    if skipped("poison_not_told") > 0 {
        wrong("poison_not_told", of("poison_not_told"), "reload virtio_balloon in the guest");
    }
    if skipped("failed") > 0 {
        let seen = format!("{}; errors: {}", of("failed"), counters["errors"]);
        wrong("discard_failed", seen, "look up the error in fallocate(2)");
    }
}

/// The findings for people.
pub(super) fn text(found: &[Finding]) -> String {
    if found.is_empty() {
        return "Nothing is wrong.\n".to_owned();
    }
    let kind = |finding: &Finding| if finding.wrong { "wrong" } else { "advice" };
    let lines = found.iter().map(|finding| {
        let Finding { cause, seen, remedy, .. } = finding;
        format!("{:6}  {cause}: {seen}\n        {remedy}\n", kind(finding))
    });
    lines.collect()
}
