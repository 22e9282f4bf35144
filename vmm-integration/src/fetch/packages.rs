// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The Debian packages that guests, the browser and Prometheus are made of, pinned by version and checksum.
//!
//! `guest-packages.toml` lists every package of a recipe, dependencies included. When the mirror
//! no longer has a pinned version, the newest of all packages are used instead, and a
//! [`super::SetupEvent::Warning`] says so. [`super::update_packages`] pins the newest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A folder of unpacked packages.
pub(crate) struct Recipe {
    /// The folder's name, and the recipe's name among the pins.
    pub(crate) name: &'static str,
    /// The contents. A change of what is fetched or of how it is unpacked needs another number, so
    /// that existing folders are replaced.
    pub(crate) stamp: &'static str,
    /// The suites; the last one is preferred.
    pub(crate) suites: &'static [&'static str],
    /// The packages without their dependencies.
    pub(crate) packages: &'static [&'static str],
    /// What becomes of the packages.
    pub(crate) form: Form,
}

/// What a folder of packages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Their files.
    Unpacked,
    /// The same, of programs that start one another: each finds the folder's libraries by itself.
    Wrapped,
    /// An installation: dpkg has configured them. Only root can make one.
    Installed,
}

/// What every Debian has, and these packages.
macro_rules! debian_with {
    ($($package:literal),* $(,)?) => {
        &[
            "base-files",
            "base-passwd",
            "bash",
            "bsdutils",
            "coreutils",
            "dash",
            "debianutils",
            "diffutils",
            "dpkg",
            "findutils",
            "grep",
            "gzip",
            "hostname",
            "init-system-helpers",
            "libc-bin",
            "mount",
            "ncurses-base",
            "passwd",
            "perl-base",
            "sed",
            "sysvinit-utils",
            "tar",
            "util-linux",
            $($package),*
        ]
    };
}

/// QEMU has the device only in the backports of Debian 13.
pub(crate) const GUEST: Recipe = Recipe {
    name: "root",
    stamp: "1: trixie, trixie-backports; qemu-system-x86 linux-image-cloud-amd64 strace",
    suites: &["trixie", "trixie-backports"],
    packages: &["qemu-system-x86", "linux-image-cloud-amd64", "strace"],
    form: Form::Unpacked,
};

/// Debian 13's own kernel, which is the older one.
pub(crate) const STABLE_KERNEL: Recipe = Recipe {
    name: "stable-kernel",
    stamp: "1: trixie; linux-image-cloud-amd64",
    suites: &["trixie"],
    packages: &["linux-image-cloud-amd64"],
    form: Form::Unpacked,
};

/// User-mode Linux of Debian 12: it needs glibc 2.34 of the host, which Debian 13 has, too.
pub(crate) const USER_MODE_LINUX: Recipe = Recipe {
    name: "user-mode-linux",
    stamp: "1: bookworm; user-mode-linux",
    suites: &["bookworm"],
    packages: &["user-mode-linux"],
    form: Form::Unpacked,
};

/// A browser for tests of the report, with the tool that makes it run from its folder.
pub(crate) const BROWSER: Recipe = Recipe {
    name: "browser",
    stamp: "1: trixie; chromium-headless-shell patchelf fonts-dejavu-core",
    suites: &["trixie"],
    packages: &["chromium-headless-shell", "patchelf", "fonts-dejavu-core"],
    form: Form::Unpacked,
};

/// What builds a module for the kernel of [`GUEST`]: its headers with the compiler they ask for.
pub(crate) const HEADERS: Recipe = Recipe {
    name: "headers",
    stamp: "1: trixie, trixie-backports; linux-headers-cloud-amd64 make",
    suites: &["trixie", "trixie-backports"],
    packages: &["linux-headers-cloud-amd64", "make"],
    form: Form::Wrapped,
};

/// The same for [`STABLE_KERNEL`].
pub(crate) const STABLE_HEADERS: Recipe = Recipe {
    name: "stable-headers",
    stamp: "1: trixie; linux-headers-cloud-amd64 make",
    suites: &["trixie"],
    packages: &["linux-headers-cloud-amd64", "make"],
    form: Form::Wrapped,
};

/// The source of the kernel of [`GUEST`] with what compiles it.
pub(crate) const KERNEL_SOURCE: Recipe = Recipe {
    name: "kernel-source",
    stamp: "1: trixie, trixie-backports; linux-source gcc-14 make flex bison bc libelf-dev libc6-dev",
    suites: &["trixie", "trixie-backports"],
    packages: &["linux-source", "gcc-14", "make", "flex", "bison", "bc", "libelf-dev", "libc6-dev"],
    form: Form::Wrapped,
};

/// A Debian 13 with systemd and libvirt, and the QEMU of its backports. What an installation must
/// have comes first: nothing depends on it.
pub(crate) const DEBIAN: Recipe = Recipe {
    name: "debian",
    stamp: "1: trixie, trixie-backports; what is essential; systemd dbus libvirt qemu-system-x86",
    suites: &["trixie", "trixie-backports"],
    packages: debian_with![
        "systemd",
        "systemd-sysv",
        "dbus",
        "libvirt-daemon-system",
        "libvirt-clients",
        "qemu-system-x86",
    ],
    form: Form::Installed,
};

/// A Debian 13 that compiles QEMU.
pub(crate) const QEMU_BUILD: Recipe = Recipe {
    name: "qemu-build",
    stamp: "1: trixie; what is essential; what compiles QEMU for x86-64",
    suites: &["trixie"],
    packages: debian_with![
        "bison",
        "dpkg-dev",
        "flex",
        "gcc",
        "libc6-dev",
        "libfdt-dev",
        "libglib2.0-dev",
        "make",
        "meson",
        "ninja-build",
        "pkgconf",
        "python3",
        "python3-venv",
        "xz-utils",
        "zlib1g-dev",
    ],
    form: Form::Installed,
};

/// What reads the metrics, and checks rules and expressions.
pub(crate) const PROMETHEUS: Recipe = Recipe {
    name: "prometheus",
    stamp: "1: trixie; prometheus",
    suites: &["trixie"],
    packages: &["prometheus"],
    form: Form::Unpacked,
};

/// All of them.
pub(crate) const RECIPES: [&Recipe; 10] = [
    &GUEST,
    &STABLE_KERNEL,
    &USER_MODE_LINUX,
    &BROWSER,
    &HEADERS,
    &STABLE_HEADERS,
    &KERNEL_SOURCE,
    &DEBIAN,
    &QEMU_BUILD,
    &PROMETHEUS,
];

/// The first lines of the file.
pub(crate) const HEADER: &str = "\
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The Debian packages of the test guests, what builds their kernels, the browser and Prometheus, with their dependencies.
# Written by `cargo xtask setup --update-packages`.
";

/// A package at a version, as apt would fetch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// A version and the checksum of its file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Pin {
    version: String,
    sha256: String,
}

/// The pinned packages of one recipe, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Pins(BTreeMap<String, Pin>);

impl Pins {
    /// Reads the pins of `recipe`.
    ///
    /// # Errors
    /// When the file cannot be read or is not of the expected form.
    pub(crate) fn of(recipe: &Recipe) -> Result<Self> {
        let path = file();
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut all: BTreeMap<String, Self> =
            toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        Ok(all.remove(recipe.name).unwrap_or_default())
    }

    /// The packages as `apt-get install` takes them, `NAME=VERSION`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        self.0.iter().map(|(name, pin)| format!("{name}={}", pin.version)).collect()
    }

    /// A text that differs when any pin does.
    pub(crate) fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (name, Pin { version, sha256 })| {
            let _ = writeln!(text, "{name:?} = {{ version = {version:?}, sha256 = {sha256:?} }}");
            text
        })
    }

    /// Checks that `plan` is what was pinned.
    ///
    /// # Errors
    /// When a checksum differs: the archive has another file under the same version.
    pub(crate) fn check(&self, plan: &[Package]) -> Result<()> {
        for Package { name, version, sha256, .. } in plan {
            if let Some(pin) = self.0.get(name)
                && pin.version == *version
                && pin.sha256 != *sha256
            {
                bail!(
                    "the checksum of {name} {version} is wrong (got {sha256}, expected {}): the \
                     archive has another file under this version; use another mirror",
                    pin.sha256
                );
            }
        }
        Ok(())
    }

    /// How `plan` differs from what was pinned, in a few words a package.
    pub(crate) fn differences(&self, plan: &[Package]) -> Vec<String> {
        let differs = |package: &&Package| {
            self.0.get(&package.name).is_none_or(|pin| pin.version != package.version)
        };
        plan.iter()
            .filter(differs)
            .map(|Package { name, version, .. }| match self.0.get(name) {
                Some(pin) => format!("{name} {version} (pinned: {})", pin.version),
                None => format!("{name} {version} (not pinned)"),
            })
            .collect()
    }
}

impl FromIterator<Package> for Pins {
    fn from_iter<I: IntoIterator<Item = Package>>(packages: I) -> Self {
        let pin = |package: Package| {
            (package.name, Pin { version: package.version, sha256: package.sha256 })
        };
        Self(packages.into_iter().map(pin).collect())
    }
}

/// The file of the pins.
pub(crate) fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-packages.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, sha256: &str) -> Package {
        Package { name: name.into(), version: version.into(), sha256: sha256.into(), bytes: 1 }
    }

    #[test]
    fn pins_come_back_from_their_text() {
        let pins: Pins =
            [package("a", "1:2+b~3", "ab"), package("c.d", "4", "cd")].into_iter().collect();
        assert_eq!(toml::from_str::<Pins>(&pins.text()).unwrap(), pins);
        assert_eq!(pins.arguments(), ["a=1:2+b~3", "c.d=4"]);
    }

    #[test]
    fn every_recipe_is_pinned() {
        for recipe in RECIPES {
            let pins = Pins::of(recipe).unwrap();
            for package in recipe.packages {
                assert!(pins.0.contains_key(*package), "{}: {package}", recipe.name);
            }
            assert!(pins.0.values().all(|pin| pin.sha256.len() == 64), "{}", recipe.name);
        }
    }

    #[test]
    fn another_file_under_a_pinned_version_is_refused() {
        let pins: Pins = [package("a", "1", "ab")].into_iter().collect();
        pins.check(&[package("a", "1", "ab")]).unwrap();
        let error = pins.check(&[package("a", "1", "cd")]).unwrap_err().to_string();
        assert!(error.contains("a 1 is wrong (got cd, expected ab)"), "{error}");
        pins.check(&[package("a", "2", "cd")]).unwrap();
    }

    #[test]
    fn a_newer_version_is_named_beside_the_pinned_one() {
        let pins: Pins = [package("a", "1", "ab"), package("b", "1", "ab")].into_iter().collect();
        let plan = [package("a", "2", "x"), package("b", "1", "ab"), package("c", "3", "x")];
        assert_eq!(pins.differences(&plan), ["a 2 (pinned: 1)", "c 3 (not pinned)"]);
    }
}
