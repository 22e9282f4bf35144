// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs that environment variables name.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The file that an environment variable names, if it is set.
///
/// # Errors
/// When there is no such file.
pub(crate) fn given(variable: &str) -> Result<Option<PathBuf>> {
    file(variable, env::var_os(variable))
}

/// The binary that an environment variable names.
///
/// # Errors
/// When it is not set, or there is no such file.
pub(crate) fn needed(variable: &str) -> Result<PathBuf> {
    binary(variable, env::var_os(variable))
}

fn binary(variable: &str, value: Option<OsString>) -> Result<PathBuf> {
    file(variable, value)?.with_context(|| format!("set {variable} to a binary"))
}

fn file(variable: &str, value: Option<OsString>) -> Result<Option<PathBuf>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let path = PathBuf::from(value);
    ensure!(path.is_file(), "{variable} is {}: expected the path of a file", path.display());
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_must_name_a_file() {
        let error = |value: Option<&str>| {
            binary("SOME_VMM", value.map(OsString::from)).unwrap_err().to_string()
        };
        for unset in [None, Some("")] {
            assert_eq!(error(unset), "set SOME_VMM to a binary");
        }
        assert_eq!(error(Some("/proc")), "SOME_VMM is /proc: expected the path of a file");
        assert_eq!(binary("X", Some("/proc/version".into())).unwrap().as_os_str(), "/proc/version");
    }
}
