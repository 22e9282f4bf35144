// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that goes on in another VMM, and beside another daemon.

use anyhow::{Result, bail, ensure};

use super::scene::{Host, REPORTING, STATISTICS, Scene, end};
use super::{MIB, PATIENCE};
use crate::vmm::bare::{Absent, BareMachine};

/// In the balloon while a guest moves.
const BALLOON: u64 = 32 * MIB;

pub(super) fn to_the_same_daemon(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics"])?;
    let saved = ready(scene, &host)?.save()?;
    let before = host.reported()?;
    let guest = saved.restore(&host.daemon.socket())?;
    goes_on(&host, before, guest)
}

pub(super) fn to_another_daemon(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics"])?;
    let saved = ready(scene, &host)?.save()?;
    // The same one may be restored twice, beside two daemons.
    let others = [scene.host(&["--statistics"])?, scene.host(&["--statistics"])?];
    let guests = others.iter().map(|other| saved.restore(&other.daemon.socket()));
    let guests = guests.collect::<Result<Vec<_>>>()?;
    for (other, guest) in others.iter().zip(guests) {
        goes_on(other, 0, guest)?;
    }
    Ok(())
}

/// The driver uses a feature that the other daemon does not have. The daemon must refuse it, name the feature, and
/// serve the next guest.
pub(super) fn to_one_that_offers_less(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&["--statistics"])?;
    let saved = ready(scene, &host)?.save()?;
    let less = scene.host(&[])?;
    match saved.restore(&less.daemon.socket()) {
        Ok(_) => bail!("a guest with statistics goes on beside a daemon without"),
        Err(error) if error.is::<Absent>() => return Err(error),
        Err(_) => {}
    }
    let log = less.daemon.log();
    ensure!(log.contains("does not offer 0x2 of them"), "the daemon names no feature: {log}");
    end(scene.serving(&less, &[])?)?;
    // The refusal did not harm the saved guest.
    let guest = saved.restore(&host.daemon.socket())?;
    goes_on(&host, host.reported()?, guest)
}

pub(super) fn twice(scene: &Scene<'_>) -> Result<()> {
    let hosts = [(); 3].map(|()| scene.host(&["--statistics"]));
    let [first, second, third] = hosts;
    let (first, second, third) = (first?, second?, third?);
    let mut guest = ready(scene, &first)?;
    for next in [&second, &third] {
        guest = guest.migrate(&next.daemon.socket())?;
        next.wait_for_reports(0)?;
        next.ask_for_statistics(&mut *guest)?;
    }
    first.daemon.session_summary(PATIENCE)?;
    goes_on(&third, 0, guest)
}

/// A guest with statistics that works, with something in its balloon.
fn ready(scene: &Scene<'_>, host: &Host) -> Result<Box<dyn BareMachine>> {
    let mut guest = scene.serving(host, &[REPORTING, STATISTICS])?;
    host.follow(&mut *guest, BALLOON)?;
    host.ask_for_statistics(&mut *guest)?;
    Ok(guest)
}

/// Checks that a guest works beside a daemon that had counted `before` bytes of reports, and that it has lost
/// nothing.
fn goes_on(host: &Host, before: u64, mut guest: Box<dyn BareMachine>) -> Result<()> {
    host.wait_for_reports(before)?;
    host.ask_for_statistics(&mut *guest)?;
    host.follow(&mut *guest, 2 * BALLOON)?;
    end(guest)
}
