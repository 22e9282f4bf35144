// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator asks of a running guest.

use anyhow::{Result, ensure};

use super::scene::{HINTS, REPORTING, STATISTICS, Scene, end};
use super::{MIB, PATIENCE};

pub(super) fn target(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut guest = scene.serving(&host, &[])?;
    for bytes in [24 * MIB, 8 * MIB, 0] {
        host.follow(&mut *guest, bytes)?;
    }
    end(guest)
}

pub(super) fn statistics(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics"])?;
    let mut guest = scene.serving(&host, &[STATISTICS, REPORTING])?;
    host.ask_for_statistics(&mut *guest)?;
    end(guest)
}

pub(super) fn hints(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics", "--free-page-hints"])?;
    let mut guest = scene.serving(&host, &[HINTS, REPORTING])?;
    host.control.done("POST", "/v1/hinting/start", "")?;
    let hinted = guest.console().wait_for("hinted", PATIENCE)?;
    ensure!(hinted.number("pages")? > 0, "no page was hinted");
    end(guest)
}
