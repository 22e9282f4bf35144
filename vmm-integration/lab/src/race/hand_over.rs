// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `hand-over`: daemons that are killed, ended and upgraded under a real guest that uses, frees and
//! verifies memory.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use strum::{Display, EnumString, VariantNames};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::KeptDaemon;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest};

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::toolbox;
use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};
use crate::progress;
use crate::store::{Findings, Verdict, VerdictKind};

/// See the module.
pub(super) struct HandOver;

const MIB: u64 = 1 << 20;
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// Between two passes of the guest, so that reports are under way at any moment.
const DELAY_MS: &str = "50";
/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const KEPT_BYTES: u64 = 64 * MIB;
const FILLED_BYTES: u64 = 256 * MIB;
/// In the balloon all the time.
const BALLOON: u64 = 64 * MIB;
/// The last moment after a free at which a daemon ends.
const LATEST_MS: u64 = 120;

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Way {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Ended,
    /// `POST /v1/upgrade`.
    Upgraded,
}

impl Way {
    const ALL: [Self; 3] = [Self::Killed, Self::Ended, Self::Upgraded];
}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        times: u16, Whole(1, 10_000), 10, 100, "daemons that end";
        ways: Vec<Way>, Several::any(), Way::ALL.to_vec(), Way::ALL.to_vec(),
            "how: by SIGKILL, by SIGTERM, or by an upgrade";
    }
}

impl Case for Way {}

impl Experiment for HandOver {
    type Parameters = Settings;
    type Case = Way;

    fn name(&self) -> &'static str {
        "hand-over"
    }

    fn about(&self) -> &'static str {
        "Ends the daemon under a real guest in QEMU again and again, at moments at which the guest reports, and \
         has the next one go on: the longest gap, memory that comes back after each, contents verified, the \
         balloon and the pins as before."
    }

    fn repeats(&self, _: &Way) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<Way> {
        settings.ways.clone()
    }

    fn run(&self, way: &Way, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => toolbox,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let daemon = KeptDaemon::spawn(&context.daemon()?, ["--statistics"])?;
        let control = ControlSocket::new(&daemon.keeper().control_socket(), PATIENCE);
        let balloon = Balloon::VhostUser { socket: daemon.keeper().socket() };
        let guest = LinuxGuest::boot(&toolbox, GuestConfig { balloon, ..GuestConfig::default() })?;
        guest.load_balloon_driver("")?;
        let agent = guest.agent();
        agent.write_file(DELAY, DELAY_MS)?;
        agent.alloc(KEPT, KEPT_BYTES, 1)?;
        control.done("PUT", "/v1/target", &format!("{{\"bytes\":{BALLOON}}}"))?;
        balloon_has(&control, BALLOON)?;
        // Of no memory that the guest uses here: that it stays is seen in the status.
        control.done("PUT", "/v1/pins", "{\"address\":0,\"bytes\":4096}")?;
        let mut gaps = Vec::new();
        for time in 0..settings.times {
            context.progress.at(time.into(), settings.times.into());
            progress::check()?;
            agent.alloc(FILLED, FILLED_BYTES, time + 2)?;
            let full = guest.resident_bytes()?;
            agent.free(FILLED)?;
            // Another moment each time: before, in and after the reports of what was freed.
            let moment = (context.seed + u64::from(time)).wrapping_mul(37) % LATEST_MS;
            thread::sleep(Duration::from_millis(moment));
            gaps.push(match way {
                Way::Killed => daemon.replace(Signal::KILL)?,
                Way::Ended => daemon.replace(Signal::TERM)?,
                Way::Upgraded => {
                    daemon.succeed(|_| control.done("POST", "/v1/upgrade", "").map(drop))?
                }
            });
            let wanted = full - FILLED_BYTES / 10 * 8;
            wait_until(PATIENCE, LOOK_EVERY, || match guest.resident_bytes() {
                Ok(now) if now <= wanted => Ok(()),
                now => Err(format!("{now:?} bytes resident, {wanted} wanted")),
            })?;
            ensure!(agent.expect_intact(KEPT)? == KEPT_BYTES, "memory was lost");
            let status = control.get("/v1/status")?;
            ensure!(status["target_bytes"] == BALLOON, "the target is gone: {status}");
            ensure!(status["pins"].as_array().is_some_and(|pins| pins.len() == 1), "{status}");
        }
        balloon_has(&control, BALLOON)?;
        control.done("PUT", "/v1/target", "{\"bytes\":0}")?;
        balloon_has(&control, 0)?;
        guest.quit()?;
        daemon.end()?;
        gaps.sort();
        let milliseconds = |gap: Duration| gap.as_secs_f64() * 1e3;
        let mut findings = Findings::default();
        findings.count(
            "times",
            settings.times.into(),
            "",
            "daemons that ended, each with one that went on",
        );
        for (name, place, what) in [
            ("gap-median", gaps.len() / 2, "the gap in the middle"),
            ("gap-longest", gaps.len() - 1, "the longest gap"),
        ] {
            findings.figure(name, milliseconds(gaps[place]), "ms", what);
        }
        let longest = milliseconds(gaps[gaps.len() - 1]);
        let text = format!(
            "{} daemons {way}, gaps of at most {longest:.0} ms, nothing lost",
            settings.times
        );
        findings.verdict = Some(Verdict { kind: VerdictKind::Survived, text });
        Ok(findings)
    }
}

/// Waits until the guest says that so much is in its balloon.
fn balloon_has(control: &ControlSocket, bytes: u64) -> Result<()> {
    wait_until(PATIENCE, LOOK_EVERY, || {
        let status = control.get("/v1/status").map_err(|error| format!("{error:#}"))?;
        if status["actual_bytes"] == bytes { Ok(()) } else { Err(status.to_string()) }
    })
}
