// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's kernel and its modules.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where the balloon driver lies below a kernel's module folder, without its ending.
const BALLOON_MODULE: &str = "kernel/drivers/virtio/virtio_balloon";

/// Enough of a kernel image to hold its header and the version text that it points to.
const HEADER_BYTES: u64 = 64 * 1024;

/// A kernel image and the balloon driver that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// As `uname -r` will print it; empty if the image does not say.
    pub release: String,
    /// The module file, compressed or not; none if the driver is built in.
    pub balloon_module: Option<PathBuf>,
}

impl Kernel {
    /// An image with its modules near, as in Debian's packages.
    pub(crate) fn with_modules_beside(image: &Path) -> Result<Self> {
        let kernel = Self::given(image)?;
        if kernel.balloon_module.is_none() {
            bail!("{} has no {BALLOON_MODULE}.ko[.xz|.zst] beside it", image.display());
        }
        Ok(kernel)
    }

    /// An image from anywhere. If no driver is found near it or among the modules of this
    /// machine, it is taken to be built in.
    pub(crate) fn given(image: &Path) -> Result<Self> {
        let mut header = Vec::new();
        File::open(image)
            .and_then(|file| file.take(HEADER_BYTES).read_to_end(&mut header))
            .with_context(|| format!("reading the kernel image {}", image.display()))?;
        let release = release_of_image(&header).unwrap_or_default();
        let near = image.parent().unwrap_or(Path::new("."));
        let mut folders = vec![near.to_owned()];
        if !release.is_empty() {
            folders.push(near.join("lib/modules").join(&release));
            folders.push(near.join("../lib/modules").join(&release));
            folders.push(near.join("../usr/lib/modules").join(&release));
            folders.push(Path::new("/lib/modules").join(&release));
        }
        let balloon_module = folders.iter().find_map(|folder| module_in(folder, BALLOON_MODULE));
        Ok(Self { image: image.to_owned(), release, balloon_module })
    }

    /// The file of a module by its path below the folder in which the balloon driver lies, without
    /// ending.
    pub(crate) fn module(&self, path: &str) -> Result<PathBuf> {
        let depth = Path::new(BALLOON_MODULE).components().count();
        let folder = self.balloon_module.as_deref().and_then(|file| file.ancestors().nth(depth));
        let found = folder.and_then(|folder| module_in(folder, path));
        found.with_context(|| {
            format!("{} has no {path}.ko[.xz|.zst] beside it", self.image.display())
        })
    }
}

/// A module's file in a kernel's module folder, by its path there without ending.
fn module_in(folder: &Path, path: &str) -> Option<PathBuf> {
    let file = |ending| folder.join(format!("{path}.ko{ending}"));
    ["", ".xz", ".zst"].map(file).into_iter().find(|file| file.is_file())
}

/// The release that a bzImage's header points to ("The Linux/x86 Boot Protocol", kernel_version).
fn release_of_image(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?);
    let text = image.get(usize::from(offset).checked_add(0x200)?..)?;
    let text = text.split(|&byte| byte == 0).next()?;
    Some(std::str::from_utf8(text).ok()?.split_whitespace().next()?.to_owned())
}

/// Contents of a module file, decompressed.
///
/// Not every kernel can decompress modules itself, so it is done here.
pub(crate) fn read_module(file: &Path) -> Result<Vec<u8>> {
    let raw = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let mut module = Vec::new();
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending {
        "ko" => module = raw,
        "xz" => {
            liblzma::read::XzDecoder::new(raw.as_slice())
                .read_to_end(&mut module)
                .with_context(|| format!("decompressing {}", file.display()))?;
        }
        "zst" => {
            ruzstd::decoding::StreamingDecoder::new(raw.as_slice())
                .map_err(std::io::Error::other)
                .and_then(|mut decoder| decoder.read_to_end(&mut module))
                .with_context(|| format!("decompressing {}", file.display()))?;
        }
        _ => bail!("{} is compressed in a way that is not known here", file.display()),
    }
    if !module.starts_with(b"\x7fELF") {
        bail!("{} is not a kernel module", file.display());
    }
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x180u16.to_le_bytes());
        let text = format!("{release} (builder@host) #1 SMP\0");
        image[0x380..0x380 + text.len()].copy_from_slice(text.as_bytes());
        image
    }

    #[test]
    fn the_release_is_in_the_header() {
        assert_eq!(release_of_image(&image("7.2.12+deb13")).unwrap(), "7.2.12+deb13");
        assert_eq!(release_of_image(b"short"), None);
        assert_eq!(release_of_image(&vec![0; 4096]), None);
        let mut far = image("x");
        far[0x20e..0x210].copy_from_slice(&u16::MAX.to_le_bytes());
        assert_eq!(release_of_image(&far), None);
    }

    #[test]
    fn modules_are_found_beside_an_image_and_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinuz");
        fs::write(&path, image("1.2.3-no-such-release")).unwrap();
        let kernel = Kernel::given(&path).unwrap();
        assert_eq!(kernel.balloon_module, None);
        assert!(Kernel::with_modules_beside(&path).is_err());

        let modules = folder.path().join("lib/modules/1.2.3-no-such-release");
        let module = modules.join(format!("{BALLOON_MODULE}.ko"));
        fs::create_dir_all(module.parent().unwrap()).unwrap();
        fs::write(&module, "\x7fELF").unwrap();
        let kernel = Kernel::given(&path).unwrap();
        assert_eq!(kernel.balloon_module.as_ref(), Some(&module));
        assert_eq!(read_module(&module).unwrap(), b"\x7fELF");
        assert_eq!(kernel.module(BALLOON_MODULE).unwrap(), module);
        let missing = kernel.module("kernel/no-such").unwrap_err().to_string();
        assert!(missing.contains("has no kernel/no-such.ko"), "{missing}");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.ko", "a.ko.xz", "a.ko.zst", "a.ko.gz"] {
            let file = folder.path().join(name);
            fs::write(&file, "not a module").unwrap();
            assert!(read_module(&file).is_err(), "{name}");
        }
    }
}
