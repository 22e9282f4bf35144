// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which control sockets there are.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::pattern::{is_pattern, places};

/// Where the units of systemd have the sockets of all daemons.
pub const DEFAULT_DIR: &str = "/run/vhost-device-balloon";

/// How the file of a control socket ends.
const EXTENSION: &str = "ctl";

/// Returns the sockets `*.ctl` in `dirs`; a directory that does not exist has none. In a path of
/// `dirs` a component `*` stands for any one name; from there on links are not followed.
///
/// # Errors
/// If a directory cannot be read.
pub fn find(dirs: &[PathBuf]) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut expanded = Vec::new();
    for dir in dirs {
        let places = places(dir)?.dirs.into_iter();
        expanded.extend(places.map(|place| (place, is_pattern(dir))));
    }
    for (dir, is_foreign) in expanded {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            // One that has gone meanwhile is none.
            let data = || if is_foreign { entry.metadata() } else { fs::metadata(&path) };
            let is_socket = || data().is_ok_and(|data| data.file_type().is_socket());
            if path.extension().is_some_and(|end| end == EXTENSION) && is_socket() {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

/// Returns the name of a VM whose daemon has no `--name`: that of its socket's file.
pub fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _sockets: Vec<_> =
            ["b.ctl", "a.ctl", "a.sock"].map(|name| UnixListener::bind(at(name)).unwrap()).into();
        fs::write(at("file.ctl"), "").unwrap();
        let dirs = [dir.path().to_owned(), at("missing")];
        let found: Vec<_> = find(&dirs).unwrap().iter().map(|path| stem(path)).collect();
        assert_eq!(found, ["a", "b"]);
    }
}
