// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Directories by a pattern: those of the pods of a node have a name each that is not known before.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Whether a directory's path has a name in it that is not known before.
pub(super) fn is_pattern(path: &Path) -> bool {
    path.components().any(|component| component.as_os_str() == "*")
}

/// What a pattern stands for now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// The directories; one without a `*` need not exist.
    pub(super) dirs: Vec<PathBuf>,
    /// Where others can come from.
    pub(super) above: Vec<PathBuf>,
}

/// Returns what `pattern` stands for: a component `*` is any one name, all others are themselves.
///
/// # Errors
/// If a directory on the way cannot be read.
pub(super) fn places(pattern: &Path) -> io::Result<Places> {
    let mut places = Places { dirs: vec![PathBuf::new()], above: Vec::new() };
    let mut is_known = true;
    for component in pattern.components() {
        let heads = std::mem::take(&mut places.dirs);
        if component.as_os_str() == "*" {
            is_known = false;
            for head in &heads {
                places.dirs.extend(below(head)?);
            }
            places.above.extend(heads);
        } else {
            let named = heads.iter().map(|head| head.join(component));
            places.dirs = named.filter(|dir| is_known || is_dir(dir)).collect();
            if !is_known {
                places.above.extend(heads);
            }
        }
    }
    places.dirs.sort();
    Ok(places)
}

/// Directories in a directory; one that does not exist has none.
fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| is_dir(path)).collect())
}

/// Whether it is a directory itself: where a pod may make names, a link leads wherever that pod likes.
fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_is_any_one_name_and_no_file() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for dir in ["pods/a/run/x", "pods/b/run/y", "pods/c", "else/d/run/z"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("pods/file"), "").unwrap();
        std::os::unix::fs::symlink(at("else/d"), at("pods/link")).unwrap();
        std::os::unix::fs::symlink(at("else/d/run"), at("pods/c/run")).unwrap();
        let found = places(&at("pods/*/run/*")).unwrap();
        assert_eq!(found.dirs, [at("pods/a/run/x"), at("pods/b/run/y")]);
        for dir in ["pods", "pods/a", "pods/c", "pods/a/run", "pods/b/run"] {
            assert!(found.above.contains(&at(dir)), "{dir}: {found:?}");
        }
        assert_eq!(places(&at("pods/c/none")).unwrap().dirs, [at("pods/c/none")]);
        assert_eq!(places(&at("none/*/run")).unwrap().above, [at("none")]);
    }
}
