// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon is linked with besides packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::linked::TARGET as GNU;

const MUSL: &str = "x86_64-unknown-linux-musl";

/// How the daemon is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linking {
    /// With the C library of its host.
    Dynamic,
    #[cfg_attr(
        not(feature = "packages"),
        allow(dead_code, reason = "the other build makes static programs")
    )]
    /// With no library of its host. Uses musl if the toolchain has it, glibc if not.
    Static,
}

impl Linking {
    /// The triple.
    ///
    /// # Errors
    /// If rustc does not say what it has.
    pub(super) fn target(self) -> Result<&'static str> {
        let is_musl = self == Self::Static && has_musl()?;
        Ok(if is_musl { MUSL } else { GNU })
    }

    /// Name, version and license of the C library that is linked in.
    ///
    /// # Errors
    /// If this machine does not say what it has.
    pub(super) fn c_library(self) -> Result<Option<(&'static str, Option<String>, &'static str)>> {
        if self == Self::Dynamic {
            return Ok(None);
        }
        if self.target()? == MUSL {
            // That of the toolchain, which does not tell.
            return Ok(Some(("musl", None, "MIT")));
        }
        let said = said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        let version = said.trim().strip_prefix("glibc ").context("getconf names no glibc")?;
        Ok(Some(("glibc", Some(version.to_owned()), "LGPL-2.1-or-later")))
    }
}

/// What compiles the daemon.
pub(super) struct Toolchain {
    pub(super) version: String,
    /// As it names itself.
    pub(super) named: String,
}

impl Toolchain {
    /// # Errors
    /// If there is no rustc.
    pub(super) fn read() -> Result<Self> {
        let named = said(Command::new("rustc").arg("--version"))?.trim().to_owned();
        let version = named.split(' ').nth(1).context("rustc tells no version")?.to_owned();
        Ok(Self { version, named })
    }
}

fn has_musl() -> Result<bool> {
    let args = ["--print", "target-libdir", "--target", MUSL];
    let output = Command::new("rustc").args(args).output().context("cannot start rustc")?;
    Ok(output.status.success()
        && Path::new(String::from_utf8_lossy(&output.stdout).trim()).exists())
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
