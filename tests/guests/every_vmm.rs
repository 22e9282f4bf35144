// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens to a guest with the daemon as its balloon device, on every VMM that must be here.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use vmm_integration::bare_guest::{Console, Line};
use vmm_integration::fetch::SetupEvent;
use vmm_integration::life::{CHECKS, Check, Outcome};
use vmm_integration::vmm::alioth::Alioth;
use vmm_integration::vmm::bare::{BareMachine, BareSpec};
use vmm_integration::vmm::cloud_hypervisor::CloudHypervisor;
use vmm_integration::vmm::model::SmallVmm;
use vmm_integration::vmm::qemu::Qemu;
use vmm_integration::vmm::user_mode_linux::Uml;
use vmm_integration::vmm::{GuestKind, Vmm};

/// The check for which the host needs huge pages, which other tests may take: `cargo xtask vmms` runs it.
const HUGE_PAGES: &str = "huge-pages";

fn run(check: &Check, vmm: &dyn Vmm) -> Outcome {
    let outcome = check.run(vmm, Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon")));
    println!("{}, {}: {outcome:?}", vmm.name(), check.name);
    outcome
}

/// Runs all checks for guests of a kind; `absent` names those that this VMM cannot pass.
fn live(vmm: &dyn Vmm, guest: GuestKind, absent: &[&str]) {
    let mut wrong = Vec::new();
    for check in CHECKS.iter().filter(|check| check.guest == guest && check.name != HUGE_PAGES) {
        let outcome = run(check, vmm);
        let expected = match &outcome {
            Outcome::Passed { .. } => !absent.contains(&check.name),
            Outcome::Absent { .. } => absent.contains(&check.name),
            Outcome::Failed { .. } => false,
        };
        if !expected {
            wrong.push(format!("{}: {outcome:?}", check.name));
        }
    }
    assert!(wrong.is_empty(), "{}: {wrong:#?}", vmm.name());
}

fn named(name: &str) -> &'static Check {
    CHECKS.iter().find(|check| check.name == name).expect("a check of this name")
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_lives_in_qemu() {
    live(&Qemu, GuestKind::Programs, &[]);
}

#[test]
#[ignore = "needs user-mode Linux: cargo xtask test"]
fn linux_lives_in_user_mode() {
    live(&Uml, GuestKind::Programs, &[]);
}

#[test]
fn the_model_lives_in_the_small_vmm() {
    live(&SmallVmm, GuestKind::Programs, &["linux-follows-target"]);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn bare_guest_lives_in_qemu() {
    live(
        &Qemu,
        GuestKind::Bare,
        &[
            "snapshot-same-daemon",
            "snapshot-another-daemon",
            "snapshot-fewer-features",
            "migrate-twice",
            "daemon-restarts",
        ],
    );
}

/// As it comes, cloud-hypervisor passes on none of the device's own features.
#[test]
#[ignore = "needs cloud-hypervisor: cargo xtask test"]
fn bare_guest_lives_in_cloud_hypervisor() {
    let version = CloudHypervisor.prepare(&mut |_| ()).expect("it is here");
    let checks = CHECKS.iter().filter(|check| check.is_for(&CloudHypervisor));
    let outcomes: Vec<_> = checks
        .filter(|check| check.name != HUGE_PAGES)
        .map(|check| (check.name, run(check, &CloudHypervisor)))
        .collect();
    let failed = |(_, outcome): &&(_, Outcome)| matches!(outcome, Outcome::Failed { .. });
    let failed: Vec<_> = outcomes.iter().filter(failed).collect();
    assert!(failed.is_empty(), "{version}: {failed:#?}");
    for check in ["balloon", "target", "vmm-killed"] {
        let passed = outcomes
            .iter()
            .any(|(name, outcome)| *name == check && matches!(outcome, Outcome::Passed { .. }));
        assert!(passed, "{version}: {check} runs on any: {outcomes:#?}");
    }
}

/// Where KVM emulates the guest's instructions a check takes up to two minutes. These are the ones that alioth's frontend
/// can break, by its queues, its resets and its channel; `cargo xtask vmms` runs the others.
const ON_KVM: &[&str] = &["balloon", "target", "pause"];

#[test]
#[ignore = "needs a bare guest on KVM: cargo xtask test"]
fn bare_guest_lives_in_alioth() {
    for name in ON_KVM {
        let outcome = run(named(name), &Alioth);
        assert!(matches!(outcome, Outcome::Passed { .. }), "{name}: {outcome:?}");
    }
}

/// QEMU with something wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// Its daemons discard nothing.
    NothingDiscarded,
    /// It answers an order to pause, and goes on.
    NotPaused,
}

impl Vmm for Wrong {
    fn name(&self) -> &'static str {
        "qemu-with-something-wrong"
    }

    fn daemon_args(&self) -> &'static [&'static str] {
        if *self == Self::NothingDiscarded { &["--paused"] } else { &[] }
    }

    fn guests(&self) -> &'static [GuestKind] {
        Qemu.guests()
    }

    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        Qemu.prepare(events)
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        let guest = Qemu.boot_bare(spec)?;
        Ok(if *self == Self::NotPaused { Box::new(NeverPaused(guest)) } else { guest })
    }
}

/// A machine that goes on when it is paused.
struct NeverPaused(Box<dyn BareMachine>);

impl BareMachine for NeverPaused {
    fn console(&mut self) -> &mut Console {
        self.0.console()
    }

    fn vmm_pid(&self) -> u32 {
        self.0.vmm_pid()
    }

    fn pause(&self) -> Result<()> {
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>, patience: Duration) -> Result<Vec<Line>> {
        self.0.finish(patience)
    }
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn checks_notice_what_is_wrong() {
    let wrong = [
        ("reports", Wrong::NothingDiscarded, "hold something"),
        ("balloon", Wrong::NothingDiscarded, "hold something"),
        ("pause", Wrong::NotPaused, "reports while it was paused"),
    ];
    for (check, vmm, expected) in wrong {
        let Outcome::Failed { error } = run(named(check), &vmm) else {
            panic!("{check} has not failed");
        };
        assert!(error.contains(expected), "{error}");
    }
}
