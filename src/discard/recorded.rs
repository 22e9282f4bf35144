// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The discarding calls of this process, for a fuzz target that looks at a whole session.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use crate::lock::lock;

/// One call that the kernel has taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The file's inode number.
    pub(crate) inode: u64,
    /// First byte in the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

/// Records a call.
pub(super) fn note(file: &File, offset: u64, len: u64) {
    let inode = file.metadata().expect("a file that can be asked").ino();
    lock(&CALLS).push(Call { inode, offset, len });
}

/// The calls since this was asked last.
pub(crate) fn take() -> Vec<Call> {
    std::mem::take(&mut lock(&CALLS))
}
