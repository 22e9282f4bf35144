// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Modules of our own for the guest's kernel, built against Debian's headers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, thread};

use anyhow::{Context, Result, ensure};

use super::{Kernel, debug_kernel};
use crate::fetch::apt::output;
use crate::fetch::{SetupEvent, Sysroot, guest_dir};

/// The module that reports by isolation.
pub const ISOLATION_REPORTING: &str = "isolation_reporting";

/// The module that makes windows in the kernel's own reporting.
pub const MAINLINE_WINDOWS: &str = "mainline_windows";
/// A module that sets a probe without effect.
pub const FOREIGN_PROBE: &str = "foreign_probe";

/// The modules that there are.
const MODULES: [&str; 3] = [ISOLATION_REPORTING, MAINLINE_WINDOWS, FOREIGN_PROBE];

/// What a module is built against.
struct Headers {
    /// The folder that `make -C` takes.
    build: PathBuf,
    /// The programs that come with it.
    programs: PathBuf,
}

/// Builds our modules for `kernel`, unless it was done; returns their files by name.
///
/// # Errors
/// When the headers of this kernel are not known or cannot be fetched, or the compiler fails; the
/// error has what it said.
pub fn build(
    kernel: &Kernel,
    events: &mut dyn FnMut(SetupEvent),
) -> Result<BTreeMap<&'static str, PathBuf>> {
    let headers = headers_of(kernel, events)?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("linux_guest/modules");
    let folder = guest_dir().join("modules").join(&kernel.release);
    let built = folder.join(format!("{:016x}", state_of(&sources, &headers)?));
    let found = |name: &'static str| (name, built.join(format!("{name}.ko")));
    let modules: BTreeMap<_, _> = MODULES.map(found).into();

    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let lock = folder.join("build.lock");
    File::create(&lock)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("locking {}", lock.display()))
        .and_then(|_lock| {
            if built.is_dir() {
                return Ok(());
            }
            events(SetupEvent::Step(format!("building modules for Linux {}", kernel.release)));
            make(&headers, &sources, &built)
        })?;
    Ok(modules)
}

/// Compiles `sources` in a folder of its own, which is named `built` when all is well.
fn make(headers: &Headers, sources: &Path, built: &Path) -> Result<()> {
    let parent = built.parent().context("the folder of the modules")?;
    // Builds of other sources only take room.
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let work = tempfile::tempdir_in(parent).context("a folder to build the modules in")?;
    for (name, text) in contents(sources)? {
        let file = work.path().join(&name);
        let folder = file.parent().context("a source outside of any folder")?;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let mut path = OsString::from(&headers.programs);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut make = Command::new(headers.programs.join("make"));
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make.arg("--directory").arg(&headers.build).arg(format!("--jobs={jobs}"));
    let mut module_folder = OsString::from("M=");
    module_folder.push(work.path());
    // Type information for debuggers would need a further tool, and nothing here reads it.
    make.arg(module_folder).args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "W=1", "modules"]);
    make.env("PATH", path).env_remove("MAKEFLAGS").env_remove("MFLAGS");
    output(&mut make).context("building the guest's modules")?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let from = work.path().join(module).join(&file);
        ensure!(from.is_file(), "the compiler left no {file}");
        fs::rename(&from, work.path().join(&file)).with_context(|| format!("moving {file}"))?;
    }
    fs::rename(work.path(), built).with_context(|| format!("naming {}", built.display()))?;
    Ok(())
}

/// The headers of `kernel`: of the guest's, of Debian's stable kernel, or of the debug kernel.
fn headers_of(kernel: &Kernel, events: &mut dyn FnMut(SetupEvent)) -> Result<Headers> {
    let folder = guest_dir();
    if let Some(build) = debug_kernel::build_folder(kernel) {
        let root = Sysroot::ensure_kernel_source(&folder, events)?;
        return Ok(Headers { build, programs: root.join("usr/bin") });
    }
    let mut tried = Vec::new();
    for ensure in [Sysroot::ensure_headers, Sysroot::ensure_stable_headers] {
        let root = ensure(&folder, events)?;
        let build = root.join("usr/src").join(format!("linux-headers-{}", kernel.release));
        if build.is_dir() {
            return Ok(Headers { build, programs: root.join("usr/bin") });
        }
        tried.push(root.join("usr/src").display().to_string());
    }
    anyhow::bail!(
        "there are no headers of Linux {} in {}: modules are built for the kernels that the \
         project fetches; `cargo xtask setup --update-packages` pins kernels and headers together",
        kernel.release,
        tried.join(" or ")
    )
}

/// A number that differs when a source or the headers do.
fn state_of(sources: &Path, headers: &Headers) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    hasher.write(headers.build.as_os_str().as_encoded_bytes());
    // The debug kernel's folder stays, and its configuration changes.
    let config = headers.build.join(".config");
    hasher.write(&fs::read(&config).with_context(|| format!("reading {}", config.display()))?);
    for (name, text) in contents(sources)? {
        hasher.write(name.as_os_str().as_encoded_bytes());
        hasher.write(&text);
    }
    Ok(hasher.finish())
}

/// The sources by their path below `folder`.
fn contents(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = fs::read_dir(&next).with_context(|| format!("listing {}", next.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", next.display()))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            found.insert(path.strip_prefix(folder)?.to_owned(), text);
        }
    }
    Ok(found)
}
