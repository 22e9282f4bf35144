// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM, and the daemons that are started for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_driver::virtio::balloon::feature;
use serde_json::Value;

use super::{MIB, PAGE, PATIENCE, SECTION};
use crate::bare_guest::Line;
use crate::control::ControlSocket;
use crate::daemon::DaemonProcess;
use crate::measure::host::wait_until;
use crate::vmm::Vmm;
use crate::vmm::bare::{BareMachine, BareSpec, absent};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Accesses one word in so many: one of each page.
const SPARSE: &str = "stride=512";

/// Features that a guest must have, and what they are called.
pub(super) type Needs = &'static [(u64, &'static str)];
pub(super) const REPORTING: (u64, &str) = (feature::REPORTING, "free page reporting");
pub(super) const STATISTICS: (u64, &str) = (feature::STATS_VQ, "statistics");
pub(super) const HINTS: (u64, &str) = (feature::FREE_PAGE_HINT, "free page hints");

/// What a check needs.
pub struct Scene<'a> {
    /// The VMM.
    pub vmm: &'a dyn Vmm,
    /// The daemon's program.
    pub daemon: &'a Path,
}

/// A daemon with its control socket.
pub(super) struct Host {
    pub(super) daemon: DaemonProcess,
    pub(super) control: ControlSocket,
}

impl Scene<'_> {
    /// Starts a daemon with the VMM's options and these.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn host(&self, args: &[&str]) -> Result<Host> {
        let args = self.vmm.daemon_args().iter().chain(args);
        let daemon = DaemonProcess::spawn_controlled(self.daemon, args.copied())?;
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Ok(Host { daemon, control })
    }

    /// Starts the next daemon on the sockets of one that has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn host_after(&self, host: &mut Host) -> Result<()> {
        host.daemon = host.daemon.successor(self.daemon, self.vmm.daemon_args())?;
        Ok(())
    }

    /// A guest with a section for its program, and two and some for the model.
    pub(super) fn spec(&self, host: &Host, steps: &str) -> BareSpec {
        BareSpec {
            memory_bytes: 4 * SECTION,
            growth_bytes: 0,
            hugetlb_page_bytes: None,
            files: 1,
            socket: host.daemon.socket(),
            command_line: vec![SPARSE.to_owned(), format!("do={steps}")],
        }
    }

    /// Boots a guest, and waits until it has a driver.
    ///
    /// # Errors
    /// When it does not come so far, or is not offered all that it `needs`.
    pub(super) fn boot(&self, spec: &BareSpec, needs: Needs) -> Result<Box<dyn BareMachine>> {
        Ok(self.boot_acked(spec, needs)?.0)
    }

    /// The same, with the features of its driver.
    fn boot_acked(&self, spec: &BareSpec, needs: Needs) -> Result<(Box<dyn BareMachine>, u64)> {
        let mut guest = self.vmm.boot_bare(spec)?;
        // A large guest that KVM emulates takes long to describe its pages.
        let acked = guest.console().wait_for("device", 2 * PATIENCE)?.number("acked")?;
        let missing = |&(bit, name): &(u64, &'static str)| (acked & bit == 0).then_some(name);
        let missing: Vec<_> = needs.iter().filter_map(missing).collect();
        if missing.is_empty() {
            return Ok((guest, acked));
        }
        absent(&format!("it offers its guest no {}", missing.join(", no ")))
    }

    /// Boots a guest that serves until [`end`] ends it, and waits until it has freed memory that it had
    /// filled, and reported it if it can.
    ///
    /// # Errors
    /// As [`Scene::boot`].
    pub(super) fn serving(&self, host: &Host, needs: Needs) -> Result<Box<dyn BareMachine>> {
        self.serving_with(host, needs, &[])
    }

    /// The same with more options on the guest's command line.
    ///
    /// # Errors
    /// As [`Scene::boot`].
    pub(super) fn serving_with(
        &self,
        host: &Host,
        needs: Needs,
        options: &[&str],
    ) -> Result<Box<dyn BareMachine>> {
        let mut spec = self.spec(host, "serve:1000");
        spec.command_line.extend(options.iter().map(|&option| option.to_owned()));
        let before = host.reported()?;
        let (mut guest, acked) = self.boot_acked(&spec, needs)?;
        guest.console().wait_for("freed", PATIENCE)?;
        if acked & feature::REPORTING != 0 {
            // All that is free, and something once more.
            host.wait_for_reports(before + spec.memory_bytes - SECTION)?;
        }
        Ok(guest)
    }

    /// Boots a guest that takes these steps and waits until it is done.
    ///
    /// # Errors
    /// As [`Scene::boot`], and when the guest fails.
    pub(super) fn done(&self, host: &Host, needs: Needs, steps: &str) -> Result<Vec<Line>> {
        self.boot(&self.spec(host, steps), needs)?.finish(PATIENCE)
    }
}

impl Host {
    /// A number in an answer of the daemon.
    pub(super) fn number(&self, path: &str, pointer: &str) -> Result<Option<u64>> {
        Ok(self.control.get(path)?.pointer(pointer).and_then(Value::as_u64))
    }

    /// Reports that came so far.
    pub(super) fn reports(&self) -> Result<u64> {
        let reports = self.number("/v1/counters", "/chains/reporting")?;
        reports.context("the daemon counts no reports")
    }

    /// Bytes that were reported so far.
    pub(super) fn reported(&self) -> Result<u64> {
        let reported = self.number("/v1/counters", "/named_bytes/reporting")?;
        reported.context("the daemon counts no reports")
    }

    /// Waits until more than `bytes` are reported.
    pub(super) fn wait_for_reports(&self, bytes: u64) -> Result<()> {
        wait(|| match self.reported() {
            Ok(now) if now > bytes => Ok(()),
            other => Err(format!("{other:?} bytes are reported, expected more than {bytes}")),
        })
    }

    /// Sets a target and waits until the guest has followed.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn follow(&self, guest: &mut dyn BareMachine, bytes: u64) -> Result<()> {
        self.set_target(bytes)?;
        // A guest that has moved may have followed the other daemon's target before.
        while guest.console().wait_for("target", PATIENCE)?.number("pages")? != bytes / PAGE {}
        self.wait_for_actual(bytes)
    }

    /// Asks for statistics, and waits until the guest has answered and the daemon has the answer.
    ///
    /// # Errors
    /// When none come, or none that can be.
    pub(super) fn ask_for_statistics(&self, guest: &mut dyn BareMachine) -> Result<()> {
        self.control.done("POST", "/v1/statistics/refresh", "")?;
        // Without a request the daemon has those with which the driver began.
        guest.console().wait_for("statistics", PATIENCE)?;
        wait(|| {
            let sample = self.control.get("/v1/statistics").map_err(|error| error.to_string())?;
            let total = sample.pointer("/sample/values/total_bytes").and_then(Value::as_u64);
            // The model has whole sections only, the first of which is the guest's program.
            let whole = |total: u64| total > 0 && total.is_multiple_of(SECTION);
            if total.is_some_and(whole) { Ok(()) } else { Err(sample.to_string()) }
        })
    }

    /// Sets a target.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub(super) fn set_target(&self, bytes: u64) -> Result<()> {
        self.control.done("PUT", "/v1/target", &format!(r#"{{"bytes": {bytes}}}"#))?;
        Ok(())
    }

    /// Waits until the driver says that it has followed.
    pub(super) fn wait_for_actual(&self, bytes: u64) -> Result<()> {
        wait(|| match self.number("/v1/status", "/actual_bytes") {
            Ok(Some(now)) if now == bytes => Ok(()),
            other => Err(format!("{other:?} bytes are in the balloon, expected {bytes}")),
        })
    }

    /// Waits until the daemon has counted so many sessions as ended.
    pub(super) fn wait_for_ended(&self, sessions: usize) -> Result<()> {
        wait(|| match self.daemon.log().matches("frontend disconnected").count() {
            ended if ended == sessions => Ok(()),
            ended => Err(format!("{ended} of {sessions} sessions have ended")),
        })
    }
}

/// Ends a guest that serves, which checks all its memory.
///
/// # Errors
/// When it has not, or its memory is not what it must be.
pub(super) fn end(mut guest: Box<dyn BareMachine>) -> Result<()> {
    guest.console().end_serving()?;
    let lines = guest.finish(PATIENCE)?;
    let checked = sum(&lines, "served", "checked_pages")?;
    ensure!(checked > 0, "the guest has freed nothing that it had filled");
    Ok(())
}

/// The sum of a value over all lines of a name, of which there is one at least.
///
/// # Errors
/// When there is none, or one has no such value.
pub(super) fn sum(lines: &[Line], name: &str, value: &str) -> Result<u64> {
    let of_name = || lines.iter().filter(|line| line.name == name);
    ensure!(of_name().count() > 0, "no line `{name}` among {lines:?}");
    of_name().map(|line| line.number(value)).sum()
}

/// Waits until `look` succeeds.
///
/// # Errors
/// When it does not; what it said last.
pub(super) fn wait<T>(look: impl FnMut() -> Result<T, String>) -> Result<T> {
    wait_until(PATIENCE, LOOK_EVERY, look)
}

/// So many bytes for a message.
pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes / MIB)
}
