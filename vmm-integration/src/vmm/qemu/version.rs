// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a QEMU can do what is needed.

use anyhow::{Context, Result, bail, ensure};

use crate::fetch::Tool;
use crate::fetch::apt::output;

/// The first version with [`DEVICE`].
const MIN_VERSION: (u32, u32) = (10, 2);

/// The generic vhost-user device that a vhost-user balloon is attached through.
pub(super) const DEVICE: &str = "vhost-user-test-device-pci";

/// Checks version and device; returns the line in which QEMU introduces itself.
pub(super) fn check(qemu: &Tool) -> Result<String> {
    let path = qemu.program.display();
    let text = output(qemu.command().arg("--version"))
        .with_context(|| format!("asking {path} for its version"))?;
    let line = text.lines().next().unwrap_or_default().to_owned();
    let Some(version) = parse(&line) else {
        bail!("expected {path} to be a QEMU, but its version is {line:?}");
    };
    ensure!(
        version >= MIN_VERSION,
        "QEMU {}.{} or later is needed for {DEVICE}; {path} is {}.{}. Without the environment \
         variable QEMU a suitable one is fetched",
        MIN_VERSION.0,
        MIN_VERSION.1,
        version.0,
        version.1,
    );
    output(qemu.command().args(["-device", &format!("{DEVICE},help")])).with_context(|| {
        format!("{line} ({path}) has no {DEVICE}: it was built without vhost-user devices")
    })?;
    Ok(line)
}

/// Major and minor number in "QEMU emulator version 11.1.3 (Debian …)".
fn parse(line: &str) -> Option<(u32, u32)> {
    let number = line.split_once("QEMU emulator version ")?.1.split_whitespace().next()?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let line = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)";
        assert_eq!(parse(line), Some((11, 1)));
        assert_eq!(parse("QEMU emulator version 10.2.50 (v10.2.0-1-gabc)"), Some((10, 2)));
        assert_eq!(parse("GNU bash, version 5.2.15"), None);
        assert!(parse("QEMU emulator version 9.2.0").unwrap() < MIN_VERSION);
    }

    #[test]
    fn another_program_is_refused() {
        let tool = Tool { program: "/bin/sh".into(), args: vec!["-c".into(), "echo sh 1".into()] };
        assert!(format!("{:#}", check(&tool).unwrap_err()).contains("to be a QEMU"));
    }
}
