// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs of a folder that start one another, such as a compiler's.
//!
//! A loader on the command line serves the first program only. Here each program becomes a script
//! that starts it with the folder's own loader and libraries. The Makefiles of a kernel's headers
//! are told where the headers are, and a linker finds libraries where a merged `/usr` has them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where Debian's headers expect themselves.
const SOURCES: &str = "/usr/src/";

/// Makes the programs in `partial` run once the folder is named `root`, and the headers in it build.
pub(super) fn wrap_programs(partial: &Path, root: &Path) -> Result<()> {
    let loader = root.join(LOADER);
    let libraries = root.join(LIBRARIES);
    let folders = ["usr/bin", "usr/libexec", "usr/lib"];
    for file in folders.into_iter().flat_map(|folder| files(&partial.join(folder))) {
        if !has_interpreter(&file) {
            continue;
        }
        let mut program = file.clone().into_os_string();
        program.push(".program");
        let program = PathBuf::from(program);
        fs::rename(&file, &program).with_context(|| format!("renaming {}", file.display()))?;
        let program = root.join(program.strip_prefix(partial)?);
        // A compiler finds its parts by the name it was started with.
        let script = format!(
            "#!/bin/sh\nexec '{}' --argv0 \"$0\" --library-path '{}' '{}' \"$@\"\n",
            loader.display(),
            libraries.display(),
            program.display()
        );
        fs::write(&file, script)
            .and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {}", file.display()))?;
    }

    for name in ["lib", "lib64"] {
        let link = partial.join(name);
        if !link.exists() {
            symlink(Path::new("usr").join(name), &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
    }

    let sources = root.join("usr/src").join("");
    for entry in fs::read_dir(partial.join("usr/src")).into_iter().flatten().flatten() {
        let makefile = entry.path().join("Makefile");
        let Ok(text) = fs::read_to_string(&makefile) else { continue };
        fs::write(&makefile, text.replace(SOURCES, &sources.to_string_lossy()))
            .with_context(|| format!("writing {}", makefile.display()))?;
    }
    Ok(())
}

/// All regular files below `folder`; none if it cannot be read.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Whether a file is a program that asks for a loader: the path of one is near its start. Libraries
/// that can be started as programs are not executable.
fn has_interpreter(file: &Path) -> bool {
    const START: usize = 4096;
    const NAME: &[u8] = b"/lib64/ld-linux-x86-64.so.2\0";
    let executable = file.metadata().is_ok_and(|data| data.permissions().mode() & 0o111 != 0);
    let is_library = file.to_string_lossy().contains(".so");
    if !executable || is_library {
        return false;
    }
    let Ok(bytes) = fs::read(file) else { return false };
    let start = &bytes[..bytes.len().min(START)];
    start.starts_with(b"\x7fELF") && start.windows(NAME.len()).any(|at| at == NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn wrapped_programs_run_from_their_final_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, root) = (folder.path().join("partial"), folder.path().join("root"));
        for sub in ["usr/bin", "usr/lib64", "usr/src/linux-headers-1"] {
            fs::create_dir_all(partial.join(sub)).unwrap();
        }
        // A loader that only shows what it was told.
        let loader = partial.join(LOADER);
        fs::write(&loader, "#!/bin/sh\necho \"$@\"\n").unwrap();
        fs::set_permissions(&loader, Permissions::from_mode(0o755)).unwrap();
        let program = partial.join("usr/bin/cc");
        fs::write(&program, b"\x7fELF.../lib64/ld-linux-x86-64.so.2\0...").unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        fs::write(partial.join("usr/bin/script"), "#!/bin/sh\n").unwrap();
        let makefile = "usr/src/linux-headers-1/Makefile";
        fs::write(partial.join(makefile), "include /usr/src/common/Makefile\n").unwrap();

        wrap_programs(&partial, &root).unwrap();
        fs::rename(&partial, &root).unwrap();

        let program = root.join("usr/bin/cc");
        let output = Command::new(&program).args(["-c", "a b"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let (own, libraries) = (program.display(), root.join(LIBRARIES));
        let libraries = libraries.display();
        let expected = format!("--argv0 {own} --library-path {libraries} {own}.program -c a b\n");
        assert_eq!(said, expected);
        assert_eq!(fs::read_to_string(root.join("usr/bin/script")).unwrap(), "#!/bin/sh\n");
        assert_eq!(fs::canonicalize(root.join("lib64")).unwrap(), root.join("usr/lib64"));
        let sources = root.join("usr/src/common/Makefile");
        let text = fs::read_to_string(root.join(makefile)).unwrap();
        assert_eq!(text, format!("include {}\n", sources.display()));
    }
}
