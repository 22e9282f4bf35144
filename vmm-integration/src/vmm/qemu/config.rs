// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guest to boot, and QEMU's command line for it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_agent::PORT_NAME;

use super::files::Files;
use super::{Accel, trace, version};

/// How often QEMU tries to connect again.
const RECONNECT_MS: u32 = 50;

/// The guest's balloon device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balloon {
    /// Ours, in another process, which must listen already.
    VhostUser {
        /// The backend's vhost-user socket.
        socket: PathBuf,
    },
    /// The same through the project's own device, which the QEMU has to be built with
    /// ([`super::built`]). QEMU connects again to a backend that is started again.
    OwnDevice {
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
    /// Sizes of its NUMA nodes in bytes, which add up to `memory_bytes`; with none it has one node.
    /// The CPUs go round the nodes.
    pub node_bytes: Vec<u64>,
    /// How many CPUs.
    pub cpus: u32,
    /// Its balloon device.
    pub balloon: Balloon,
    /// Modules of the kernel's package that the agent can load, by path below its folder and without
    /// ending, such as `kernel/arch/x86/kvm/kvm`. The balloon driver is always among them.
    pub modules: Vec<String>,
    /// Whether the agent can load the project's own modules, too, which are built for this kernel.
    pub own_modules: bool,
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
            node_bytes: Vec::new(),
            cpus: 2,
            balloon: Balloon::None,
            modules: Vec::new(),
            own_modules: false,
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

/// QEMU's arguments for a Linux guest, except for what the toolbox says. The descriptors are those of the
/// agent and of QMP.
pub(super) fn linux_arguments(
    config: &GuestConfig,
    files: &Files,
    [agent, qmp]: &[OwnedFd; 2],
) -> Result<Vec<OsString>> {
    // panic=-1: restart at once, which -action turns into the end of QEMU. no_timer_check: on an
    // overloaded host an emulated guest gets too few ticks for the check, and panics ("IO-APIC +
    // timer doesn't work"). Under KVM Linux sets it by itself.
    let defaults = ["console=ttyS0", "panic=-1", "no_timer_check"];
    let mut kernel_args = defaults.map(str::to_owned).to_vec();
    kernel_args.extend(config.kernel_args.iter().cloned());
    let port = [
        ("-action", "reboot=shutdown".to_owned()),
        ("-append", kernel_args.join(" ")),
        ("-chardev", format!("file,id=serial,path={}", escaped(&files.serial())?)),
        ("-chardev", format!("socket,id=agent,fd={}", agent.as_raw_fd())),
        ("-device", "virtio-serial-pci".to_owned()),
        ("-device", format!("virtserialport,chardev=agent,name={PORT_NAME}")),
    ];
    arguments(config, files, &port, qmp)
}

/// QEMU's arguments for the bare guest, except for its image. The descriptors are those of the serial port and
/// of QMP.
pub(super) fn bare_arguments(
    config: &GuestConfig,
    files: &Files,
    [serial, qmp]: &[OwnedFd; 2],
) -> Result<Vec<OsString>> {
    let port = [
        ("-append", config.kernel_args.join(" ")),
        ("-chardev", format!("socket,id=serial,fd={}", serial.as_raw_fd())),
    ];
    arguments(config, files, &port, qmp)
}

/// What all guests have: the machine, `console`, which defines the character device `serial`, QMP, and the
/// balloon.
fn arguments(
    config: &GuestConfig,
    files: &Files,
    console: &[(&str, String)],
    qmp: &OwnedFd,
) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> = ["-nodefaults", "-no-user-config"].map(OsString::from).into();
    let mut add = |name: &str, value: &str| args.extend([name.into(), value.into()]);
    add("-display", "none");
    for (name, value) in memory(config)?.iter().chain(console) {
        add(name, value);
    }
    add("-serial", "chardev:serial");
    add("-chardev", &format!("socket,id=qmp,fd={}", qmp.as_raw_fd()));
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
        Balloon::OwnDevice { socket } => {
            let path = escaped(socket)?;
            add("-chardev", &format!("socket,id=balloon,path={path},reconnect-ms={RECONNECT_MS}"));
            let device = "vhost-user-balloon-pci,id=balloon-device,chardev=balloon";
            add("-device", &format!("{device},queue-size={}", config.vq_size));
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

/// Memory and CPUs. Each node has a file of its own, shared as a vhost-user backend needs it.
fn memory(config: &GuestConfig) -> Result<Vec<(&'static str, String)>> {
    let GuestConfig { memory_bytes, node_bytes, cpus, .. } = config;
    let huge = config
        .hugetlb_page_bytes
        .map_or(String::new(), |bytes| format!(",hugetlb=on,hugetlbsize={}K", bytes >> 10));
    let backend = |id: &str, bytes: u64| {
        let size = bytes >> 20;
        ("-object", format!("memory-backend-memfd,id={id},size={size}M,share=on{huge}"))
    };
    let sizes = [("-smp", cpus.to_string()), ("-m", format!("{}M", memory_bytes >> 20))];
    if node_bytes.is_empty() {
        let machine = ("-machine", "q35,memory-backend=mem".to_owned());
        return Ok([machine]
            .into_iter()
            .chain(sizes)
            .chain([backend("mem", *memory_bytes)])
            .collect());
    }
    ensure!(
        node_bytes.iter().sum::<u64>() == *memory_bytes
            && node_bytes.iter().all(|bytes| bytes.is_multiple_of(2 << 20)),
        "node_bytes is {node_bytes:?}: expected multiples of 2 MiB that add up to {memory_bytes}"
    );
    let mut args = vec![("-machine", "q35".to_owned())];
    args.extend(sizes);
    for (node, &bytes) in node_bytes.iter().enumerate() {
        args.push(backend(&format!("mem{node}"), bytes));
        let of_node = (0..*cpus).skip(node).step_by(node_bytes.len());
        let of_node: String = of_node.map(|cpu| format!(",cpus={cpu}")).collect();
        args.push(("-numa", format!("node,nodeid={node},memdev=mem{node}{of_node}")));
    }
    Ok(args)
}

/// A path as a value in a list that commas separate.
fn escaped(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_shared_memory_and_its_cpus() {
        let mib = 1 << 20;
        let config = GuestConfig {
            memory_bytes: 768 * mib,
            node_bytes: vec![512 * mib, 256 * mib],
            cpus: 3,
            ..GuestConfig::default()
        };
        let args = memory(&config).unwrap();
        let all = |wanted: &str| -> Vec<&str> {
            args.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| &**value).collect()
        };
        assert_eq!(
            all("-object"),
            [
                "memory-backend-memfd,id=mem0,size=512M,share=on",
                "memory-backend-memfd,id=mem1,size=256M,share=on"
            ]
        );
        let nodes = ["node,nodeid=0,memdev=mem0,cpus=0,cpus=2", "node,nodeid=1,memdev=mem1,cpus=1"];
        assert_eq!(all("-numa"), nodes);
        assert_eq!(
            (all("-machine"), all("-m"), all("-smp")),
            (vec!["q35"], vec!["768M"], vec!["3"])
        );
        let wrong = GuestConfig { memory_bytes: 512 * mib, ..config };
        let error = memory(&wrong).unwrap_err().to_string();
        assert!(error.contains("node_bytes is [536870912, 268435456]: expected"), "{error}");
        let one = GuestConfig { node_bytes: Vec::new(), ..wrong };
        assert!(memory(&one).unwrap().contains(&("-machine", "q35,memory-backend=mem".to_owned())));
    }
}
