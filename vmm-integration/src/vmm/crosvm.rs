// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! crosvm, whose binary the environment variable `CROSVM` names.
//!
//! This row was not run with a crosvm: what it boots is read in its source. It enters Linux images, ELF files of
//! 32 bits and multiboot images, and the bare guest is a PVH image.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::bare::{BareMachine, BareSpec, absent};
use super::named::needed;
use super::{GuestKind, Vmm, kvm};
use crate::fetch::SetupEvent;
use crate::fetch::apt::output;

/// Names the binary.
const VARIABLE: &str = "CROSVM";

/// crosvm as a row of [`crate::vmm::ALL`].
pub struct Crosvm;

impl Vmm for Crosvm {
    fn name(&self) -> &'static str {
        "crosvm"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Bare]
    }

    fn prepare(&self, _: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        let binary = needed(VARIABLE)?;
        let text = output(Command::new(&binary).arg("version"));
        let text = text.with_context(|| format!("asking {} for its version", binary.display()))?;
        let line = version(&text);
        ensure!(!line.is_empty(), "expected {} to be a crosvm", binary.display());
        kvm::open()?;
        Ok(line.to_owned())
    }

    fn boot_bare(&self, _: &BareSpec) -> Result<Box<dyn BareMachine>> {
        absent("it boots no PVH image, and the bare guest is one")
    }
}

/// The line in which crosvm says its version; empty if there is none.
fn version(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| line.starts_with("crosvm ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_a_line_of_its_own() {
        assert_eq!(version("[INFO] logging\ncrosvm 0.1.0-abc\n"), "crosvm 0.1.0-abc");
        assert_eq!(version("bash: version: command not found\n"), "");
    }
}
