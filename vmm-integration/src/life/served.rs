// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator asks of a running guest.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::scene::{Scene, end, wait};
use super::{MIB, PAGE, PATIENCE, SECTION};

pub(super) fn target(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut guest = scene.serving(&host)?;
    for bytes in [24 * MIB, 8 * MIB, 0] {
        host.set_target(bytes)?;
        let line = guest.console().wait_for("target", PATIENCE)?;
        let pages = line.number("pages")?;
        ensure!(pages == bytes / PAGE, "{pages} pages for a target of {bytes} bytes");
        host.wait_for_actual(bytes)?;
    }
    end(guest)
}

pub(super) fn statistics(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics"])?;
    let guest = scene.serving(&host)?;
    host.control.done("POST", "/v1/statistics/refresh", "")?;
    wait(|| {
        let statistics = host.control.get("/v1/statistics").map_err(|error| error.to_string())?;
        let total = statistics.pointer("/sample/values/total_bytes").and_then(Value::as_u64);
        // The model has whole sections only, the first of which is the guest's program.
        let whole = |total: u64| total > 0 && total.is_multiple_of(SECTION);
        if total.is_some_and(whole) { Ok(()) } else { Err(statistics.to_string()) }
    })?;
    end(guest)
}

pub(super) fn hints(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics", "--free-page-hints"])?;
    let mut guest = scene.serving(&host)?;
    host.control.done("POST", "/v1/hinting/start", "")?;
    let hinted = guest.console().wait_for("hinted", PATIENCE)?;
    ensure!(hinted.number("pages")? > 0, "no page was hinted");
    end(guest)
}
