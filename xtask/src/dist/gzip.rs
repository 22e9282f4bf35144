// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compression as packages have it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Compresses without a name or a date.
///
/// # Errors
/// If gzip is missing or fails.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip");
    gzip.args(["-9", "--no-name"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = gzip.spawn().context("cannot start gzip")?;
    let mut input = child.stdin.take().context("gzip has no input")?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().context("gzip")?;
    writer.join().ok().context("gzip's writer")?.context("gzip")?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_text_has_neither_name_nor_date() {
        let bytes = gzip(b"text\n").unwrap();
        assert_eq!(bytes, gzip(b"text\n").unwrap());
        // No optional fields, and a date of 0.
        assert_eq!(bytes[3..8], [0; 5]);
    }
}
