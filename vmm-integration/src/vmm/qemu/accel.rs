// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which accelerator runs the guest.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Toolbox;
use crate::fetch::guest_dir;
use crate::vmm::kvm;

/// How QEMU runs the guest's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// By the processor, through KVM.
    Kvm,
    /// By emulation: everywhere, and some ten times slower.
    Tcg,
}

impl Accel {
    /// QEMU's arguments.
    pub(super) fn args(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// The accelerator that the environment asks for, or else the best that works.
    ///
    /// `/dev/kvm` may exist and yet be unable to run Linux, in a nested or restricted virtual
    /// machine: so `try_kvm` boots a guest with it. The verdict is kept until the next boot of the
    /// host.
    pub(super) fn choose(toolbox: &Toolbox, try_kvm: impl FnOnce() -> Result<()>) -> Result<Self> {
        // Tests boot guests at the same time: one of them tries, the others wait for its verdict.
        static TRYING: Mutex<()> = Mutex::new(());
        let _trying = TRYING.lock().unwrap_or_else(PoisonError::into_inner);
        match std::env::var("GUEST_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("") | Err(_) => {}
            Ok(other) => {
                bail!("GUEST_ACCEL is {other:?}: expected kvm or tcg");
            }
        }
        if let Err(error) = kvm::open() {
            let verdict =
                Verdict { accel: Self::Tcg, reason: format!("{error:#}"), of: String::new() };
            verdict.log();
            return Ok(Self::Tcg);
        }
        let of = identity(toolbox)?;
        // Each QEMU has its own, so that two do not take turns at probing.
        let number = toolbox.qemu_version.split_whitespace().nth(3).unwrap_or("unknown");
        let file = guest_dir().join(format!("accel-{number}.json"));
        if let Some(verdict) = Verdict::read(&file).filter(|verdict| verdict.of == of) {
            verdict.log();
            return Ok(verdict.accel);
        }
        let verdict = Verdict::by_probing(try_kvm, of);
        verdict.log();
        verdict.write(&file)?;
        Ok(verdict.accel)
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG (emulation)",
        })
    }
}

/// The result of a probe, and the machine, QEMU and kernel that it holds for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    accel: Accel,
    reason: String,
    of: String,
}

impl Verdict {
    fn by_probing(try_kvm: impl FnOnce() -> Result<()>, of: String) -> Self {
        eprintln!("guest: testing whether KVM can run it");
        match try_kvm() {
            Ok(()) => Self { accel: Accel::Kvm, reason: "a guest booted with KVM".to_owned(), of },
            Err(error) => {
                let first = error.to_string().lines().next().unwrap_or_default().to_owned();
                let reason = format!("no guest booted with /dev/kvm: {first}");
                Self { accel: Accel::Tcg, reason, of }
            }
        }
    }

    fn log(&self) {
        static LOGGED: std::sync::Once = std::sync::Once::new();
        LOGGED.call_once(|| eprintln!("guest: using {}: {}", self.accel, self.reason));
    }

    fn read(file: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
    }

    fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let partial = tempfile::NamedTempFile::new_in(folder)
            .with_context(|| format!("creating a file in {}", folder.display()))?;
        fs::write(partial.path(), text)
            .with_context(|| format!("writing {}", partial.path().display()))?;
        partial.persist(file).with_context(|| format!("naming {}", file.display()))?;
        Ok(())
    }
}

/// Identifies this boot of the host, this QEMU, this kernel.
fn identity(toolbox: &Toolbox) -> Result<String> {
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(boot_id).with_context(|| format!("reading {boot_id}"))?;
    let Toolbox { qemu_version, kernel, .. } = toolbox;
    Ok(format!("{} / {qemu_version} / {}", boot.trim(), kernel.image.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("accel.json");
        assert_eq!(Verdict::read(&file), None);
        let verdict = Verdict { accel: Accel::Tcg, reason: "why".into(), of: "this".into() };
        verdict.write(&file).unwrap();
        assert_eq!(Verdict::read(&file), Some(verdict));
    }
}
