// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guest to boot, and QEMU's command line for it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::PORT_NAME;

use super::files::Files;
use super::{Accel, trace, version};

/// The guest's balloon device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balloon {
    /// Ours, in another process, which must listen already.
    VhostUser {
        /// The backend's vhost-user socket.
        socket: PathBuf,
    },
    /// QEMU's own, with free page reporting on and its discards counted.
    Qemu,
    /// The guest has no balloon.
    None,
}

/// What guest to boot.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Size of its memory, a multiple of 2 MiB. The least that a Debian kernel boots in is about
    /// 200 MiB.
    pub memory_bytes: u64,
    /// How many CPUs.
    pub cpus: u32,
    /// Its balloon device.
    pub balloon: Balloon,
    /// Added to the kernel's command line, such as `init_on_free=1`.
    pub kernel_args: Vec<String>,
    /// Added to QEMU's command line.
    pub qemu_args: Vec<String>,
    /// Size of the huge pages behind the memory, in bytes; with none it is of base pages.
    pub hugetlb_page_bytes: Option<u64>,
    /// Virtqueues of the vhost-user device. Five: so many the specification knows.
    pub num_vqs: u16,
    /// Entries in each of its queues.
    pub vq_size: u16,
    /// What runs it; by default what works best here.
    pub accel: Option<Accel>,
    /// How long it may take until the agent answers.
    pub boot_timeout: Duration,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            cpus: 2,
            balloon: Balloon::None,
            kernel_args: Vec::new(),
            qemu_args: Vec::new(),
            hugetlb_page_bytes: None,
            num_vqs: 5,
            vq_size: 128,
            accel: None,
            boot_timeout: Duration::from_secs(120),
        }
    }
}

/// QEMU's arguments, except for what the toolbox says.
pub(super) fn arguments(
    config: &GuestConfig,
    files: &Files,
    fds: &[OwnedFd; 2],
) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> =
        ["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from).into();
    let mut add = |name: &str, value: &str| args.extend([name.into(), value.into()]);
    add("-display", "none");
    add("-machine", "q35,memory-backend=mem");
    add("-smp", &config.cpus.to_string());
    let size = format!("{}M", config.memory_bytes >> 20);
    add("-m", &size);
    let huge = config
        .hugetlb_page_bytes
        .map_or(String::new(), |bytes| format!(",hugetlb=on,hugetlbsize={}K", bytes >> 10));
    add("-object", &format!("memory-backend-memfd,id=mem,size={size},share=on{huge}"));

    // panic=-1: restart at once, which -no-reboot turns into the end of QEMU. no_timer_check: on an
    // overloaded host an emulated guest gets too few ticks for the check, and panics ("IO-APIC +
    // timer doesn't work"). Under KVM Linux sets it by itself.
    let defaults = ["console=ttyS0", "panic=-1", "no_timer_check"];
    let mut kernel_args = defaults.map(str::to_owned).to_vec();
    kernel_args.extend(config.kernel_args.iter().cloned());
    add("-append", &kernel_args.join(" "));
    add("-chardev", &format!("file,id=serial,path={}", escaped(&files.serial())?));
    add("-serial", "chardev:serial");

    add("-chardev", &format!("socket,id=agent,fd={}", fds[0].as_raw_fd()));
    add("-device", "virtio-serial-pci");
    add("-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}"));
    add("-chardev", &format!("socket,id=qmp,fd={}", fds[1].as_raw_fd()));
    // Not -mon, for which QEMU 11.1 prints that it is deprecated; what it names instead is not in
    // 10.2.
    add("-qmp", "chardev:qmp");

    match &config.balloon {
        Balloon::VhostUser { socket } => {
            add("-chardev", &format!("socket,id=balloon,path={}", escaped(socket)?));
            let GuestConfig { num_vqs, vq_size, .. } = config;
            add(
                "-device",
                &format!(
                    "{},chardev=balloon,virtio-id=5,num_vqs={num_vqs},vq_size={vq_size},\
                     config_size=16",
                    version::DEVICE
                ),
            );
        }
        Balloon::Qemu => {
            add("-device", "virtio-balloon-pci,free-page-reporting=on");
            let log = escaped(&files.trace())?;
            add("-trace", &format!("enable={},file={log}", trace::EVENT_PATTERN));
        }
        Balloon::None => {}
    }
    args.extend(config.qemu_args.iter().map(OsString::from));
    Ok(args)
}

/// A path as a value in a list that commas separate.
fn escaped(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}
