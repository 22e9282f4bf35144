// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kinds of guest of an experiment, and what a real one needs.

use anyhow::{Context as _, Result};
use vmm_integration::fetch::SetupEvent;
use vmm_integration::guest::Guest;
use vmm_integration::vmm::Vmm;
use vmm_integration::vmm::model::SmallVmm;
use vmm_integration::vmm::qemu::{self, Qemu, Toolbox};
use vmm_integration::vmm::user_mode_linux::Uml;

use crate::experiment::Repeats;

/// A kind of guest, with the name of its VMM in [`vmm_integration::vmm::ALL`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum GuestKind {
    /// The model of Linux's page allocator.
    Model,
    /// Linux in QEMU.
    Qemu,
    /// Linux as a process of the host: one CPU, at the processor's speed.
    UserModeLinux,
}

impl GuestKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Model, Self::Qemu, Self::UserModeLinux];

    /// The VMM that boots it.
    pub fn vmm(self) -> &'static dyn Vmm {
        match self {
            Self::Model => &SmallVmm,
            Self::Qemu => &Qemu,
            Self::UserModeLinux => &Uml,
        }
    }

    /// The part of its results that the same seed repeats.
    pub fn repeats(self) -> Repeats {
        match self {
            Self::Model => Repeats::ButForTimes,
            Self::Qemu | Self::UserModeLinux => Repeats::ButForTheGuest,
        }
    }

    /// Fetches what it needs, or gives the reason why this machine cannot boot it.
    ///
    /// # Errors
    /// If it cannot although the environment variable `CI` is set.
    pub fn available(self) -> Result<Result<(), String>> {
        unless_in_ci(prepared(self.vmm()).map(drop))
    }
}

/// Prepares a VMM and says what it fetches; returns its version.
///
/// # Errors
/// See [`Vmm::prepare`].
pub fn prepared(vmm: &dyn Vmm) -> Result<String> {
    vmm.prepare(&mut |event| {
        if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
            eprintln!("guest: {text}");
        }
    })
}

/// A result whose error fails only a run in CI, and is a reason elsewhere.
fn unless_in_ci<T>(result: Result<T>) -> Result<Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => Ok(Err(format!("no Linux guest on this machine: {error:#}"))),
    }
}

/// Names a guest, with the number of its CPUs where an agent can say it.
///
/// # Errors
/// If the agent does not answer.
pub fn describe(guest: &dyn Guest) -> Result<String> {
    let Some(agent) = guest.agent() else { return Ok(guest.describe()) };
    let cpus = agent.read_file("/proc/cpuinfo").context("counting the guest's CPUs")?;
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let unit = if cpus == 1 { "CPU" } else { "CPUs" };
    Ok(format!("{}, {cpus} {unit}", guest.describe()))
}

/// A kernel of a Linux guest.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Kernel {
    /// The newest one.
    Newest,
    /// That of Debian's stable release.
    Stable,
    /// The newest one with lockdep, KASAN and other checks, if it was built.
    Debug,
}

impl Kernel {
    /// The toolbox with this kernel.
    ///
    /// # Errors
    /// If it cannot be fetched.
    pub fn of(self, toolbox: &Toolbox) -> Result<Toolbox> {
        let kernel = match self {
            Self::Newest => toolbox.kernel.clone(),
            Self::Stable => qemu::stable_kernel()?,
            Self::Debug => qemu::debug_kernel()?,
        };
        Ok(Toolbox { kernel, ..toolbox.clone() })
    }

    /// What the name of a case ends with.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Newest => "",
            Self::Stable => "-stable",
            Self::Debug => "-debug",
        }
    }
}

/// QEMU and a kernel, or the reason why this machine has none.
///
/// # Errors
/// If there is none although the environment variable `CI` is set.
pub fn toolbox() -> Result<Result<Toolbox, String>> {
    unless_in_ci(qemu::available())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_integration::vmm;

    #[test]
    fn guest_has_the_name_of_its_vmm() {
        for kind in GuestKind::ALL {
            assert_eq!(kind.to_string(), kind.vmm().name());
            assert!(vmm::ALL.iter().any(|vmm| vmm.name() == kind.vmm().name()), "{kind}");
        }
    }
}
