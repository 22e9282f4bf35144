// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Prometheus and `promtool`, of this machine or of Debian.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::{SetupEvent, Sysroot, Tool, guest_dir};

/// The two programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    /// The server.
    pub server: Tool,
    /// What checks rules, expressions and expositions.
    pub promtool: Tool,
}

impl Prometheus {
    /// Finds both in `PATH`, or unpacks Debian's into `target/guest` (a download of 45 MB).
    ///
    /// # Errors
    /// When apt or dpkg are missing, or the archive cannot be reached.
    pub fn ensure(events: &mut dyn FnMut(SetupEvent)) -> Result<Self> {
        if let (Some(server), Some(promtool)) = (in_path("prometheus"), in_path("promtool")) {
            return Ok(Self { server, promtool });
        }
        let folder = Sysroot::ensure_prometheus(&guest_dir(), events)?;
        Ok(Self { server: folder.tool("prometheus"), promtool: folder.tool("promtool") })
    }
}

fn in_path(name: &str) -> Option<Tool> {
    let mut command = Command::new(name);
    let version = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let runs = version.status().is_ok_and(|status| status.success());
    runs.then(|| Tool { program: PathBuf::from(name), args: Vec::new() })
}
