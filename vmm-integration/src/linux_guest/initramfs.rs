// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's file system: the agent as `/init`, modules, and the console's device node.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use guest_agent::MODULE_DIR;

use super::kernel::read_module;

/// Packs an initramfs with the agent and modules, given by name and file. Kept in `guest_dir` by
/// contents: what is there already is not written again.
pub(crate) fn pack(guest_dir: &Path, agent: &Path, modules: &[(&str, &Path)]) -> Result<PathBuf> {
    let init = fs::read(agent).with_context(|| format!("reading {}", agent.display()))?;
    let mut named_modules = Vec::new();
    for &(name, file) in modules {
        named_modules.push((name, read_module(file)?));
    }
    let archive = archive(&init, &named_modules).context("packing the initramfs")?;

    let mut hasher = DefaultHasher::new();
    hasher.write(&archive);
    let folder = guest_dir.join("initramfs");
    let path = folder.join(format!("{:016x}.cpio", hasher.finish()));
    if !path.exists() {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        // Another process may pack the same at this moment: the name appears in one step.
        let mut partial = tempfile::NamedTempFile::new_in(&folder)
            .with_context(|| format!("creating a file in {}", folder.display()))?;
        partial
            .write_all(&archive)
            .with_context(|| format!("writing {}", partial.path().display()))?;
        partial.persist(&path).with_context(|| format!("naming {}", path.display()))?;
    }
    Ok(path)
}

fn archive(init: &[u8], modules: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), inodes: 0 };
    archive.add("dev", ModeFileType::Directory, 0o755, &[])?;
    // The kernel opens it for init before devtmpfs can be mounted.
    archive.add_console()?;
    // The kernel takes folders only in order: a parent comes before what is in it.
    let module_dir = MODULE_DIR.trim_start_matches('/');
    for (end, _) in module_dir.match_indices('/').chain([(module_dir.len(), "")]) {
        archive.add(&module_dir[..end], ModeFileType::Directory, 0o755, &[])?;
    }
    for (name, module) in modules {
        archive.add(&format!("{module_dir}/{name}.ko"), ModeFileType::Regular, 0o644, module)?;
    }
    archive.add("init", ModeFileType::Regular, 0o755, init)?;
    Ok(trailer(archive.bytes)?)
}

struct Archive {
    bytes: Vec<u8>,
    /// Entries so far: each needs an inode number of its own, or the kernel takes them for links.
    inodes: u32,
}

impl Archive {
    fn add(&mut self, name: &str, kind: ModeFileType, mode: u32, contents: &[u8]) -> Result<()> {
        let entry = Builder::new(name).mode(mode).set_mode_file_type(kind);
        self.write(entry, contents)
    }

    /// The node /dev/console: character device 5, 1.
    fn add_console(&mut self) -> Result<()> {
        let entry = Builder::new("dev/console")
            .mode(0o600)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(5)
            .rdev_minor(1);
        self.write(entry, &[])
    }

    fn write(&mut self, entry: Builder, contents: &[u8]) -> Result<()> {
        self.inodes += 1;
        let size = u32::try_from(contents.len()).context("a file of 4 GiB or more")?;
        let mut writer = entry.ino(self.inodes).nlink(1).write(&mut self.bytes, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    #[test]
    fn archive_entries_are_in_the_order_the_kernel_needs() {
        let bytes = archive(b"init!", &[("a", b"module".to_vec())]).unwrap();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut contents).unwrap();
            let entry = reader.entry();
            found.push((entry.name().to_owned(), entry.mode(), contents));
            rest = reader.finish().unwrap();
        }
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "lib", "lib/modules", "lib/modules/a.ko", "init"]);
        assert_eq!(found[1].1, 0o020_600);
        assert_eq!((found[5].1, found[5].2.as_slice()), (0o100_755, b"init!".as_slice()));
    }

    #[test]
    fn the_same_contents_are_packed_once() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        fs::write(&agent, "one").unwrap();
        let first = pack(folder.path(), &agent, &[]).unwrap();
        assert_eq!(pack(folder.path(), &agent, &[]).unwrap(), first);
        fs::write(&agent, "two").unwrap();
        assert_ne!(pack(folder.path(), &agent, &[]).unwrap(), first);
    }
}
