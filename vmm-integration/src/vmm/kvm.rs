// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/dev/kvm`.

use std::fs::OpenOptions;

use anyhow::{Context, Result};

/// Checks that this process may use KVM. It may still be unable to run a guest.
///
/// # Errors
/// When it may not.
pub(crate) fn open() -> Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.map(drop).context("/dev/kvm cannot be opened")
}
