// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which version of glibc a program needs.

/// What the names of the versions of symbols begin with.
const PREFIX: &[u8] = b"GLIBC_";

/// The newest version whose symbols `program` needs; none if it is linked statically.
pub(super) fn needed(program: &[u8]) -> Option<(u32, u32)> {
    let starts = program.windows(PREFIX.len()).enumerate();
    let starts = starts.filter(|(_, bytes)| *bytes == PREFIX).map(|(at, _)| at + PREFIX.len());
    // A dynamic program has the names one after the other, each with a zero behind it.
    let names = starts.filter_map(|start| program[start..].split(|byte| *byte == 0).next());
    let versions = names.filter_map(|name| {
        let (major, minor) = str::from_utf8(name).ok()?.split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    });
    if is_static(program) { None } else { versions.max() }
}

/// Whether `program` asks for no loader.
pub(super) fn is_static(program: &[u8]) -> bool {
    const LOADER: &[u8] = b"/lib64/ld-linux-x86-64.so.2\0";
    let start = &program[..program.len().min(4096)];
    !start.windows(LOADER.len()).any(|bytes| bytes == LOADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_of_symbols_is_needed() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own));
        let (major, minor) = needed(&own).unwrap();
        // That of the oldest symbols of this architecture, and of those that threads need.
        assert!(major == 2 && minor >= 17, "{major}.{minor}");
        assert_eq!(needed(b"\x7fELF GLIBC_2.34\0"), None);
    }
}
