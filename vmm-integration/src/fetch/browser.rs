// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A headless Chromium, which shows pages as readers see them.
//!
//! The environment variable `CHROMIUM` names its program. Otherwise it is found by name in `PATH`; a
//! full Chromium and the headless shell both serve. Where there is none, [`Browser::ensure`] unpacks
//! Debian's headless shell into `target/browser` (a download of 170 MB), without root and without
//! installing anything.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fetch::SetupEvent;
use crate::fetch::apt::{Archive, PrivateApt, output};
use crate::fetch::devtools::Devtools;
pub use crate::fetch::devtools::{Loaded, Screen};
use crate::fetch::packages::{BROWSER, Pins};

const STAMP: &str = ".recipe";
const NAMES: [&str; 5] =
    ["chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "chrome"];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const PROGRAM: &str = "usr/lib/chromium/chromium-headless-shell";

/// A browser that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Browser {
    program: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Browser {
    /// Finds a browser on this machine or in `target/browser`.
    pub fn find() -> Option<Self> {
        let of_machine = |program: PathBuf| Self { program, environment: Vec::new() };
        if let Some(given) = env::var_os("CHROMIUM").filter(|value| !value.is_empty()) {
            return Some(of_machine(given.into()));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = env::split_paths(&path).collect();
        let in_folders = |name| folders.iter().map(move |folder| folder.join(name));
        let mut candidates = NAMES.iter().flat_map(in_folders);
        candidates.find(|candidate| candidate.is_file()).map(of_machine).or_else(Self::unpacked)
    }

    /// Finds a browser, or fetches Debian's.
    ///
    /// # Errors
    /// When apt or dpkg are missing, or the archive cannot be reached.
    pub fn ensure() -> Result<Self> {
        if let Some(browser) = Self::find() {
            return Ok(browser);
        }
        ensure!(cfg!(target_arch = "x86_64"), "the packages are for x86-64 hosts only");
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let lock =
            File::create(folder.join("setup.lock")).context("locking the browser's folder")?;
        lock.lock().context("locking the browser's folder")?;
        if let Some(browser) = Self::unpacked() {
            return Ok(browser);
        }
        let apt = folder.join("apt");
        let archive = Archive::of_this_machine()?;
        let files = PrivateApt::new(&apt, &archive, BROWSER.suites)?.download(
            BROWSER.packages,
            &Pins::of(&BROWSER)?,
            &mut tell,
        )?;
        let (partial, root) = (folder.join("root.partial"), folder.join("root"));
        for old in [&partial, &root] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
            }
        }
        fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
        for file in &files {
            output(Command::new("dpkg-deb").arg("-x").arg(file).arg(&partial))
                .with_context(|| format!("unpacking {}", file.display()))?;
        }
        // The browser starts itself again for each of its processes, so that a loader on its command
        // line is not enough: the loader's path goes into the program.
        let root = fs::canonicalize(&folder).context("the browser's folder")?.join("root");
        let mut patch = Command::new(partial.join(LOADER));
        patch
            .arg("--library-path")
            .arg(partial.join(LIBRARIES))
            .arg(partial.join("usr/bin/patchelf"));
        patch.arg("--set-interpreter").arg(root.join(LOADER)).arg(partial.join(PROGRAM));
        output(&mut patch).context("naming the loader in the browser")?;
        fs::write(partial.join(STAMP), BROWSER.stamp).context("marking the browser's folder")?;
        fs::rename(&partial, &root).with_context(|| format!("naming {}", root.display()))?;
        // Not needed any more; packages that stay only take room.
        let _ = fs::remove_dir_all(&apt);
        Self::unpacked().context("the unpacked browser is missing")
    }

    fn unpacked() -> Option<Self> {
        let root = fs::canonicalize(folder().join("root")).ok()?;
        let stamp = fs::read_to_string(root.join(STAMP)).ok()?;
        let libraries = root.join(LIBRARIES);
        let paths = env::join_paths([libraries.clone(), libraries.join("pulseaudio")]).ok()?;
        (stamp == BROWSER.stamp).then(|| Self {
            program: root.join(PROGRAM),
            environment: vec![
                ("LD_LIBRARY_PATH", paths),
                ("FONTCONFIG_PATH", root.join("etc/fonts").into()),
                ("FONTCONFIG_SYSROOT", root.clone().into()),
            ],
        })
    }

    /// Loads `page` on each of these screens.
    ///
    /// # Errors
    /// When the browser fails or does not answer in time; the error holds its log.
    pub fn load(&self, page: &Path, screens: &[Screen]) -> Result<Vec<Loaded>> {
        let folder = tempfile::tempdir().context("a folder for the browser")?;
        let page = fs::canonicalize(page).with_context(|| format!("finding {}", page.display()))?;
        let address = format!("file://{}", page.display());
        let mut profile = OsString::from("--user-data-dir=");
        profile.push(folder.path().join("profile"));
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // The pages are the project's own, and root has no sandbox.
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
            .args(["--disable-dev-shm-usage", "--no-first-run"])
            .arg(profile);
        let log = folder.path().join("log");
        let loaded = Devtools::start(&command, &log).and_then(|mut devtools| {
            screens.iter().map(|screen| devtools.load(&address, *screen)).collect()
        });
        loaded.with_context(|| {
            let log = fs::read(&log).unwrap_or_default();
            format!("{}: {}", self.program.display(), String::from_utf8_lossy(&log))
        })
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/browser")
}

fn tell(event: SetupEvent) {
    match event {
        SetupEvent::Step(text) | SetupEvent::Warning(text) => eprintln!("browser: {text}"),
        SetupEvent::Download { packages, total_bytes } => {
            eprintln!("browser: downloading {packages} packages, {} MB", total_bytes / 1_000_000);
        }
        SetupEvent::Progress { .. } | SetupEvent::Unpack { .. } | SetupEvent::Compile { .. } => {}
    }
}
