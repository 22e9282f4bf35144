// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bare guest in QEMU: it allocates, fills, verifies, frees and reports without a pause, so that a daemon
//! ends in the middle of a report.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::Vmm as _;
use vmm_integration::vmm::bare::BareSpec;
use vmm_integration::vmm::qemu::Qemu;

use super::daemons::{Daemons, LOOK_EVERY, PATIENCE};

const MEMORY_BYTES: u64 = 512 << 20;
/// Longer than any number of daemons: the guest is told when it is over.
const SERVE: &str = "do=serve:1000000,verify";
/// QEMU asks the daemon whenever a guest reads the configuration space, which this guest would never cease to
/// do. A message that is being read when the daemon is killed may be lost (`docs/user/hand-over.md`); here
/// it is the reports that are looked at.
const NO_TARGETS: &str = "targets=no";
/// One word of each page is written and checked.
const SPARSE: &str = "stride=512";
/// When a daemon ends: some hundred reports after it goes on, and no sooner than the keeper lets the next one
/// rest.
const MOMENTS: Range<Duration> = Duration::from_millis(100)..Duration::from_millis(120);

/// Ends daemons under it; returns the gaps.
///
/// # Errors
/// When the guest finds a page that it uses changed, or one that it reported kept, or when reports end.
pub(super) fn run(daemons: &Daemons<'_>) -> Result<Vec<Duration>> {
    let spec = BareSpec {
        memory_bytes: MEMORY_BYTES,
        growth_bytes: 0,
        hugetlb_page_bytes: None,
        files: 1,
        socket: daemons.socket(),
        command_line: [SPARSE, NO_TARGETS, SERVE].map(str::to_owned).into(),
    };
    let mut guest = Qemu.boot_bare(&spec)?;
    guest.console().wait_for("serving", PATIENCE)?;
    let mut gaps = Vec::new();
    for time in daemons.times() {
        time?;
        wait_for_reports(daemons)?;
        gaps.push(daemons.replace(MOMENTS)?);
    }
    wait_for_reports(daemons)?;
    guest.console().end_serving()?;
    let lines = guest.finish(PATIENCE)?;
    let served = lines.iter().find(|line| line.name == "served");
    ensure!(served.is_some(), "the guest did not serve: {lines:?}");
    Ok(gaps)
}

/// Waits until the daemon of the moment has served a report.
fn wait_for_reports(daemons: &Daemons<'_>) -> Result<()> {
    let reports = || {
        let counters = daemons.control().get("/v1/counters")?;
        anyhow::Ok(counters["chains"]["reporting"].as_u64())
    };
    let before = reports()?;
    wait_until(PATIENCE, LOOK_EVERY, || match reports() {
        Ok(now) if now > before => Ok(()),
        now => Err(format!("{now:?} reports, {before:?} before")),
    })
}
