// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the agent does with the kernel: modules, files of sysfs and procfs, power.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use guest_agent::race::{MemoryBlock, MemoryBlocks, Task};
use guest_agent::{BalloonDevice, Hello, MAX_LINE_BYTES, MODULE_DIR, MemInfo};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

/// Of a file no more is read than fits into a line even where JSON doubles it by escapes.
const MAX_FILE_BYTES: usize = MAX_LINE_BYTES / 4;

const DEBUGFS: &str = "/sys/kernel/debug";

/// Virtio device id of the balloon.
const BALLOON_ID: &str = "0x0005";

/// Name of the system's error that is behind this one.
pub(crate) fn errno_name(error: &anyhow::Error) -> Option<String> {
    let errno = error.chain().find_map(|cause| {
        cause.downcast_ref::<Errno>().copied().or_else(|| {
            let code = cause.downcast_ref::<std::io::Error>()?.raw_os_error()?;
            Some(Errno::from_raw(code))
        })
    });
    // Debug of Errno is the constant's name.
    errno.map(|errno| format!("{errno:?}"))
}

/// Mounts debugfs, unless it is there.
pub(crate) fn mount_debugfs() -> Result<()> {
    match mount(Some("debugfs"), DEBUGFS, Some("debugfs"), MsFlags::empty(), None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).context("mounting debugfs: expected CONFIG_DEBUG_FS"),
    }
}

pub(crate) fn hello() -> Result<Hello> {
    let uptime = read_file("/proc/uptime")?;
    // "12.34 23.45": seconds with two decimals, of which the first is the time since boot.
    let first = uptime.split_whitespace().next().unwrap_or_default();
    let hundredths: u64 =
        first.replace('.', "").parse().with_context(|| format!("uptime is {uptime:?}"))?;
    // SAFETY: sysconf only reads.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(Hello {
        kernel_release: read_file("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        uptime_ms: hundredths * 10,
        page_bytes: u64::try_from(page_bytes).context("the page size")?,
    })
}

pub(crate) fn load_module(name: &str, params: &str) -> Result<()> {
    ensure!(!name.contains('/'), "{name:?} is not a module's name");
    let path = Path::new(MODULE_DIR).join(format!("{name}.ko"));
    let file = File::open(&path)
        .with_context(|| format!("opening {}: the initramfs must hold it", path.display()))?;
    let params_text = CString::new(params).context("module parameters")?;
    finit_module(&file, &params_text, ModuleInitFlags::empty())
        .with_context(|| format!("loading {name} with parameters {params:?}"))
}

pub(crate) fn unload_module(name: &str) -> Result<()> {
    let c_name = CString::new(name).context("module name")?;
    delete_module(&c_name, DeleteModuleFlags::O_NONBLOCK)
        .with_context(|| format!("unloading {name}"))
}

pub(crate) fn meminfo() -> Result<MemInfo> {
    Ok(MemInfo::parse(&read_file("/proc/meminfo")?))
}

pub(crate) fn read_file(path: &str) -> Result<String> {
    let file = File::open(path).with_context(|| format!("opening {path}"))?;
    let mut contents = Vec::new();
    let limit = u64::try_from(MAX_FILE_BYTES)? + 1;
    file.take(limit).read_to_end(&mut contents).with_context(|| format!("reading {path}"))?;
    if contents.len() > MAX_FILE_BYTES {
        bail!("{path} is longer than {MAX_FILE_BYTES} bytes");
    }
    Ok(String::from_utf8_lossy(&contents).into_owned())
}

/// Reads the first `bytes` of a file or a block device, which stays open: the page cache of a block
/// device goes with the last that has it open.
pub(crate) fn read_through(path: &str, bytes: u64) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {path}"))?;
    let read = io::copy(&mut (&file).take(bytes), &mut io::sink());
    let read = read.with_context(|| format!("reading {path}"))?;
    ensure!(read == bytes, "{path} has {read} bytes, expected {bytes}");
    let _open = file.into_raw_fd();
    Ok(())
}

pub(crate) fn write_file(path: &str, text: &str) -> Result<()> {
    let mut file =
        OpenOptions::new().write(true).open(path).with_context(|| format!("opening {path}"))?;
    // One call: sysfs takes each write as a value of its own.
    let written =
        file.write(text.as_bytes()).with_context(|| format!("writing {text:?} to {path}"))?;
    ensure!(written == text.len(), "{path} took {written} of {} bytes", text.len());
    Ok(())
}

pub(crate) fn balloon() -> Result<Option<BalloonDevice>> {
    let folder = "/sys/bus/virtio/devices";
    for entry in fs::read_dir(folder).with_context(|| format!("listing {folder}"))? {
        let path = entry.with_context(|| format!("listing {folder}"))?.path();
        let read = |name: &str| {
            let file = path.join(name);
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
        };
        if read("device")?.trim() != BALLOON_ID {
            continue;
        }
        let status = read("status")?;
        let digits = status.trim().trim_start_matches("0x");
        return Ok(Some(BalloonDevice {
            features: parse_features(&read("features")?),
            status: u32::from_str_radix(digits, 16)
                .with_context(|| format!("device status {status:?}"))?,
            path: path.display().to_string(),
        }));
    }
    Ok(None)
}

/// sysfs lists the bits as digits, bit 0 first; there may be more than 64 of them.
fn parse_features(text: &str) -> u64 {
    let bits = text.trim().chars().take(64).enumerate();
    bits.filter(|&(_, digit)| digit == '1').fold(0, |all, (bit, _)| all | 1 << bit)
}

/// Folder of the memory blocks.
pub(crate) const MEMORY: &str = "/sys/devices/system/memory";

pub(crate) fn memory_blocks() -> Result<MemoryBlocks> {
    let size = read_file(&format!("{MEMORY}/block_size_bytes"))
        .context("the kernel has no memory hotplug")?;
    let block_bytes = u64::from_str_radix(size.trim(), 16).context("the size of a memory block")?;
    let mut blocks = Vec::new();
    for entry in fs::read_dir(MEMORY).with_context(|| format!("listing {MEMORY}"))? {
        let name = entry.with_context(|| format!("listing {MEMORY}"))?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("memory")?.parse().ok());
        let Some(id) = id else { continue };
        let read = |file: &str| read_file(&format!("{MEMORY}/memory{id}/{file}"));
        blocks.push(MemoryBlock {
            id,
            state: read("state")?.trim().to_owned(),
            zones: read("valid_zones")?.split_whitespace().map(str::to_owned).collect(),
            removable: read("removable")?.trim() == "1",
        });
    }
    blocks.sort_by_key(|block: &MemoryBlock| block.id);
    Ok(MemoryBlocks { block_bytes, blocks })
}

/// The tasks in a state.
pub(crate) fn tasks(state: char) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Its threads, of which the agent has many. A task that has ended meanwhile is none.
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            tasks.extend(task(pid, &thread.path()).filter(|task| task.state == state));
        }
    }
    Ok(tasks)
}

fn task(pid: u32, folder: &Path) -> Option<Task> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
    let stat = read("stat")?;
    // `PID (NAME) STATE …`, where the name may hold anything.
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    let name = read("comm")?.trim_end().to_owned();
    let stack = read("stack").unwrap_or_default();
    let stack = stack.lines().map(|line| line.trim_start_matches("[<0>] ").to_owned()).collect();
    Some(Task { pid, name, state, stack })
}

/// A counter of `/proc/vmstat`; 0 if this kernel has no such counter.
pub(crate) fn vmstat(counter: &str) -> Result<u64> {
    let text = read_file("/proc/vmstat")?;
    let value = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
    Ok(value.unwrap_or(0))
}

pub(crate) fn power_off() -> Result<()> {
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => Err(error).context("powering off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_digits_bit_0_first() {
        assert_eq!(parse_features("000001\n"), 1 << 5);
        let mut digits = vec!['0'; 128];
        digits[5] = '1';
        digits[32] = '1';
        digits[100] = '1';
        assert_eq!(parse_features(&digits.iter().collect::<String>()), 1 << 5 | 1 << 32);
        assert_eq!(parse_features(""), 0);
    }
}
