// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kinds of guest of an experiment, and what a real one needs.

use anyhow::Result;
use vmm_integration::vmm::Vmm;
use vmm_integration::vmm::model::SmallVmm;
use vmm_integration::vmm::qemu::{self, Qemu, Toolbox};

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
}

impl GuestKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Model, Self::Qemu];

    /// The VMM that boots it.
    pub fn vmm(self) -> &'static dyn Vmm {
        match self {
            Self::Model => &SmallVmm,
            Self::Qemu => &Qemu,
        }
    }
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
        };
        Ok(Toolbox { kernel, ..toolbox.clone() })
    }
}

/// QEMU and a kernel, or the reason why this machine has none.
///
/// # Errors
/// If there is none although the environment variable `CI` is set.
pub fn toolbox() -> Result<Result<Toolbox, String>> {
    match qemu::available() {
        Ok(toolbox) => Ok(Ok(toolbox)),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => Ok(Err(format!("no Linux guest on this machine: {error:#}"))),
    }
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
