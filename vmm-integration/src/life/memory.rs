// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that is reported, inflated and added.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::scene::{Host, REPORTING, Scene, mib, sum, wait};
use super::{MIB, PAGE, PATIENCE, SECTION};
use crate::bare_guest::Line;
use crate::measure::hugetlb::Pool;
use crate::vmm::bare::{BareSpec, absent};

/// What the model reports at once.
const BLOCK: u64 = 2 * MIB;
/// More than any machine has below its hole, which begins at 3 GiB or before.
const BOTH_SIDES: u64 = 26 * SECTION;
/// Where it ends.
const HOLE_END: u64 = 4 << 30;
/// How long that much may take where KVM emulates the guest's instructions.
const MUCH_MEMORY_PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn reports(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let lines = scene.done(&host, &[REPORTING], "verify,churn:1")?;
    all_is_discarded(&host, &lines)
}

pub(super) fn two_regions(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut spec = scene.spec(&host, "verify");
    spec.memory_bytes = BOTH_SIDES;
    with_region(scene, &host, &spec, &|region| address(region).is_some_and(|at| at >= HOLE_END))
}

pub(super) fn two_files(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut spec = scene.spec(&host, "verify");
    spec.files = 2;
    with_region(scene, &host, &spec, &|region| address(region) == Some(spec.memory_bytes / 2))
}

/// Guest physical address of a region in the daemon's status.
fn address(region: &Value) -> Option<u64> {
    region.get("address").and_then(Value::as_u64)
}

/// Checks that a guest loses nothing and the daemon discards all that it reports, and that the daemon has a region
/// that is as it `must_be`.
fn with_region(
    scene: &Scene<'_>,
    host: &Host,
    spec: &BareSpec,
    must_be: &dyn Fn(&Value) -> bool,
) -> Result<()> {
    let guest = scene.boot(spec, &[REPORTING])?;
    wait(|| {
        let status = host.control.get("/v1/status").map_err(|error| error.to_string())?;
        let regions = status.pointer("/memory/regions").and_then(Value::as_array);
        match regions.is_some_and(|regions| regions.iter().any(must_be)) {
            true => Ok(()),
            false => Err(format!("no region of the memory is as it must be: {status}")),
        }
    })?;
    let lines = guest.finish(MUCH_MEMORY_PATIENCE)?;
    all_is_discarded(host, &lines)
}

pub(super) fn huge_pages(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--hugetlb"])?;
    let mut spec = scene.spec(&host, "verify");
    spec.hugetlb_page_bytes = Some(BLOCK);
    let Ok(_pool) = Pool::with_free(BLOCK, spec.memory_bytes) else {
        return absent(&format!("the host has no {} of huge pages", mib(spec.memory_bytes)));
    };
    with_region(scene, &host, &spec, &|region| region.get("hugetlb") == Some(&Value::Bool(true)))
}

pub(super) fn balloon(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let lines = scene.done(&host, &[], "balloon:64,reset,balloon:32")?;
    let zero = sum(&lines, "ballooned", "zero_pages")?;
    ensure!(zero == 96 * MIB / PAGE, "{zero} pages were zero: {lines:?}");
    Ok(())
}

pub(super) fn added(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut spec = scene.spec(&host, "");
    let Some(address) = scene.vmm.added_memory_at(spec.memory_bytes) else {
        return absent("it adds no memory to a running guest");
    };
    spec.growth_bytes = SECTION;
    let steps = format!("do=verify,grow:{address:x}:{},verify", SECTION / MIB);
    spec.command_line.retain(|word| !word.starts_with("do="));
    spec.command_line.push(steps);
    let mut guest = scene.boot(&spec, &[REPORTING])?;
    guest.console().wait_for("waiting", PATIENCE)?;
    guest.plug_memory(address, SECTION)?;
    let lines = guest.finish(PATIENCE)?;
    let reported = sum(&lines, "grown", "reported_pages")?;
    ensure!(reported == SECTION / PAGE, "{reported} pages of it were reported");
    Ok(())
}

/// Checks that the daemon discarded all that the guest reported, and the guest reported what it freed.
fn all_is_discarded(host: &Host, lines: &[Line]) -> Result<()> {
    let summary = host.daemon.session_summary(PATIENCE)?;
    let churned = lines.iter().filter(|line| line.name == "churned");
    let churned: u64 = churned.map(|line| line.number("pages")).sum::<Result<_>>()?;
    let reported = sum(lines, "verified", "reported_pages")? + churned;
    let freed = sum(lines, "verified", "freed_pages")?;
    ensure!(freed > 0 && reported >= freed, "{reported} pages reported, {freed} freed");
    let bytes = reported * PAGE;
    ensure!(
        summary.bytes_reported == bytes && summary.bytes_discarded == bytes,
        "the guest reported {bytes} bytes: {summary:?}"
    );
    Ok(())
}
