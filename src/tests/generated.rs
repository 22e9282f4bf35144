// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that are generated from the code and kept in the repository.

use std::path::Path;
use std::{env, fs};

/// Checks that `file`, a path below the repository, is what the code says: `text`, or anything that
/// `is_same` takes for it. Writes it instead if the environment has `UPDATE_GENERATED`.
pub(crate) fn check(file: &str, text: &str, is_same: impl Fn(&str) -> bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, text).expect("the file can be written");
        return;
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let first = found.lines().zip(text.lines()).find(|(found, expected)| found != expected);
    assert!(
        is_same(&found),
        "{file} differs from the code: run UPDATE_GENERATED=1 cargo test --lib; first difference: \
         {first:?}"
    );
}
