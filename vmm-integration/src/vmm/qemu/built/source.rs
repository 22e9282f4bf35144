// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's source of QEMU, with the project's device in it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::inside::Inside;
use super::write;
use crate::fetch::SetupEvent;
use crate::fetch::source::{SourceFile, SourcePackage, fetch};

/// The newest one that `qemu-device/` is written for.
pub(super) const VERSION: &str = "1:10.2.2+ds-1";

const PACKAGE: SourcePackage = SourcePackage {
    name: "qemu",
    version: VERSION,
    suite: "sid",
    description: "qemu_10.2.2+ds-1.dsc",
    files: &[
        SourceFile {
            name: "qemu_10.2.2+ds-1.dsc",
            sha256: "f1684b3aa5ec500c3389d346c6501dee45041ea91656c6556d4da9023b7987dd",
        },
        SourceFile {
            name: "qemu_10.2.2+ds.orig.tar.xz",
            sha256: "be05230fe47a6937cd29f28f562932c8125f9c93c2a82c625198f7a4aa601dfb",
        },
        SourceFile {
            name: "qemu_10.2.2+ds-1.debian.tar.xz",
            sha256: "ddf75aceab4f8f77374f3cb34fc97b41514895aeb293ce8b2ddd5e072bb0f5c0",
        },
    ],
};

macro_rules! device {
    ($($name:literal),+) => {
        &[$(($name, include_str!(concat!("../../../../qemu-device/", $name)))),+]
    };
}

/// The files of the device, which go into `hw/virtio`.
pub(super) const DEVICE: &[(&str, &str)] =
    device!("vhost-user-balloon.c", "vhost-user-balloon.h", "vhost-user-balloon-pci.c");

/// What makes QEMU's own build take the device: a file, a line of it, and what comes before that line; without
/// a line it comes at the end.
const ENTRIES: [(&str, Option<&str>, &str); 3] = [
    (
        "hw/virtio/Kconfig",
        None,
        "\nconfig VHOST_USER_BALLOON\n    bool\n    default y\n    depends on VIRTIO && VHOST_USER\n",
    ),
    (
        "hw/virtio/meson.build",
        Some("virtio_pci_ss = ss.source_set()\n"),
        "system_virtio_ss.add(when: 'CONFIG_VHOST_USER_BALLOON', if_true: files('vhost-user-balloon.c'))\n",
    ),
    (
        "hw/virtio/meson.build",
        Some("virtio_pci_ss.add(when: 'CONFIG_VIRTIO_BALLOON'"),
        "virtio_pci_ss.add(when: 'CONFIG_VHOST_USER_BALLOON', if_true: files('vhost-user-balloon-pci.c'))\n",
    ),
];

/// Fetches and unpacks the source, unless this very one is there.
pub(super) fn unpack(
    folder: &Path,
    inside: &Inside,
    events: &mut dyn FnMut(SetupEvent),
) -> Result<()> {
    let (source, partial) = (folder.join("source"), folder.join("source.partial"));
    let mark = |source: &Path| source.join(".unpacked");
    if fs::read_to_string(mark(&source)).is_ok_and(|text| text == VERSION) {
        return Ok(());
    }
    let download = folder.join("download");
    fetch(&PACKAGE, &download, events)?;
    events(SetupEvent::Step("unpacking QEMU's source".to_owned()));
    for old in [&source, &partial, &folder.join("build")] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    // apt has checked the signature of the index that names the checksums.
    let args = ["--no-check", "--extract", PACKAGE.description, "../source.partial"];
    inside.run("download", "dpkg-source", &args, &mut |_| {}).context("unpacking QEMU's source")?;
    write(&mark(&partial), VERSION)?;
    fs::rename(&partial, &source).with_context(|| format!("naming {}", source.display()))?;
    // It is not needed any more; if it stays, it only takes room.
    let _ = fs::remove_dir_all(&download);
    Ok(())
}

/// Puts the device into the source. What is there already stays untouched, so that it is not compiled again.
pub(super) fn apply(source: &Path) -> Result<()> {
    for (name, text) in DEVICE {
        let file = source.join("hw/virtio").join(name);
        if fs::read_to_string(&file).is_ok_and(|there| there == *text) {
            continue;
        }
        write(&file, text)?;
    }
    for (name, before, entry) in ENTRIES {
        let file = source.join(name);
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        if text.contains(entry) {
            continue;
        }
        let changed = match before {
            None => text + entry,
            Some(line) if text.matches(line).count() == 1 => {
                text.replace(line, &format!("{entry}{line}"))
            }
            Some(line) => bail!(
                "{name} of QEMU {VERSION} has {} lines with {line:?}, expected one: the device is \
                 not written for this version",
                text.matches(line).count()
            ),
        };
        write(&file, &changed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(meson: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let virtio = folder.path().join("hw/virtio");
        fs::create_dir_all(&virtio).unwrap();
        write(&virtio.join("Kconfig"), "config VIRTIO\n    bool\n").unwrap();
        write(&virtio.join("meson.build"), meson).unwrap();
        folder
    }

    #[test]
    fn the_device_is_applied_once() {
        let meson = "a\nvirtio_pci_ss = ss.source_set()\n\
                     virtio_pci_ss.add(when: 'CONFIG_VIRTIO_BALLOON', if_true: x)\n";
        let folder = source(meson);
        let read =
            |name: &str| fs::read_to_string(folder.path().join("hw/virtio").join(name)).unwrap();
        apply(folder.path()).unwrap();
        let (kconfig, meson) = (read("Kconfig"), read("meson.build"));
        assert_eq!(meson.matches("vhost-user-balloon").count(), 2);
        assert!(kconfig.ends_with("depends on VIRTIO && VHOST_USER\n"));
        apply(folder.path()).unwrap();
        assert_eq!((kconfig, meson), (read("Kconfig"), read("meson.build")));
        assert_eq!(read("vhost-user-balloon.h"), DEVICE[1].1);
    }

    #[test]
    fn a_source_of_another_shape_is_refused() {
        let error = apply(source("nothing\n").path()).unwrap_err().to_string();
        assert!(error.contains("has 0 lines with"), "{error}");
    }
}
