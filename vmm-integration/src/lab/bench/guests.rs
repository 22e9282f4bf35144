//! A guest of either kind with a device of either kind, to be put under the same workload.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use guest_driver::reporting::{Config, Reporter};

use crate::daemon::{DaemonOptions, DaemonProcess};
use crate::host;
use crate::lab::experiment::Context;
use crate::model::{GuestMemory, Holdings, ModelConfig, ModelVm, ReporterThread};
use crate::qemu::{self, Balloon, GuestConfig, LinuxGuest, Toolbox};

/// How long a daemon may take to sum up and to end.
const WIND_UP: Duration = Duration::from_secs(10);
/// What the guests use they allocate page by page, as most programs do.
const ORDER: u8 = 0;
const CPUS: usize = 2;

/// Who gives memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// Nobody: reporting is off.
    Off,
    /// Our daemon.
    Ours,
    /// QEMU's own balloon device.
    Qemu,
}

impl Device {
    /// The device that a case's name ends with.
    pub(super) fn named(case: &str) -> Option<Self> {
        let all = [Self::Off, Self::Ours, Self::Qemu];
        let name = case.rsplit('-').next()?;
        all.into_iter().find(|device| device.to_string() == name)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Ours => "ours",
            Self::Qemu => "qemu",
        })
    }
}

/// What a device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Discards {
    /// Ranges that were reported to it.
    pub(super) ranges: u64,
    /// System calls on them.
    pub(super) calls: u64,
}

/// A running guest.
pub(super) enum Guest {
    /// A real one.
    Linux {
        /// In QEMU.
        guest: Arc<LinuxGuest>,
        /// Ours, if that is the device.
        daemon: Option<DaemonProcess>,
    },
    /// The model.
    Model {
        /// The reporter, unless reporting is off.
        thread: Option<ReporterThread>,
        /// What it has in use.
        holdings: Holdings,
        /// The guest.
        vm: Box<ModelVm>,
        /// Which it is attached to, reporting or not.
        daemon: DaemonProcess,
    },
}

/// What a real guest needs, or why there is none here.
///
/// # Errors
/// With the environment variable `CI` set, where there is none.
pub(super) fn toolbox() -> Result<Result<Toolbox, String>> {
    match qemu::available() {
        Ok(toolbox) => Ok(Ok(toolbox)),
        Err(error) if std::env::var_os("CI").is_some() => Err(error),
        Err(error) => Ok(Err(format!("Not measured: there is no Linux guest here: {error:#}"))),
    }
}

impl Guest {
    /// Boots Linux. With a device its driver is loaded.
    ///
    /// # Errors
    /// If anything does not start.
    pub(super) fn linux(
        toolbox: &Toolbox,
        device: Device,
        memory_bytes: u64,
        hugetlb_page_bytes: Option<u64>,
        context: &Context<'_>,
    ) -> Result<Self> {
        let daemon = match device {
            Device::Ours => {
                // Off by default: see the daemon's help.
                let args = hugetlb_page_bytes.map(|_| "--hugetlb".into()).into_iter().collect();
                let options = DaemonOptions { args, ..DaemonOptions::default() };
                Some(DaemonProcess::spawn(&context.daemon()?, &options)?)
            }
            Device::Off | Device::Qemu => None,
        };
        let balloon = match (device, &daemon) {
            (Device::Qemu, _) => Balloon::Qemu,
            (_, Some(daemon)) => Balloon::VhostUser { socket: daemon.socket() },
            (_, None) => Balloon::None,
        };
        let config =
            GuestConfig { memory_bytes, balloon, hugetlb_page_bytes, ..GuestConfig::default() };
        let guest = Arc::new(LinuxGuest::boot(toolbox, config)?);
        if device != Device::Off {
            guest.load_balloon_driver("")?;
        }
        Ok(Self::Linux { guest, daemon })
    }

    /// Starts the model, in the default configuration.
    ///
    /// # Errors
    /// If anything does not start.
    pub(super) fn model(device: Device, memory_bytes: u64, context: &Context<'_>) -> Result<Self> {
        let daemon = DaemonProcess::spawn(&context.daemon()?, &DaemonOptions::default())?;
        let memory = GuestMemory::flat(memory_bytes, CPUS);
        let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
        let thread = match device {
            Device::Off => None,
            Device::Ours | Device::Qemu => {
                let queue = vm.take_reporting()?;
                let reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
                Some(ReporterThread::start(reporter, queue)?)
            }
        };
        let holdings = Holdings::new(vm.mm(), vm.ram());
        Ok(Self::Model { thread, holdings, vm: Box::new(vm), daemon })
    }

    /// In a sentence.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Linux { guest, .. } => {
                format!("Linux {} in QEMU, {}.", guest.hello().kernel_release, guest.accel())
            }
            Self::Model { .. } => "The model, tracker D with isolation, in real memory.".to_owned(),
        }
    }

    /// Allocates and writes all of it.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(super) fn alloc(&self, name: u32, bytes: u64, generation: u16) -> Result<()> {
        match self {
            Self::Linux { guest, .. } => guest.agent().alloc(name, bytes, generation),
            Self::Model { holdings, .. } => holdings.alloc(name, bytes, ORDER, generation),
        }
    }

    /// Checks all of it and frees it.
    ///
    /// # Errors
    /// If a word of it is not what was written.
    pub(super) fn check_and_free(&self, name: u32) -> Result<()> {
        match self {
            Self::Linux { guest, .. } => {
                guest.agent().expect_intact(name)?;
                guest.agent().free(name)
            }
            Self::Model { holdings, .. } => {
                let verdict = holdings.verify(name)?;
                anyhow::ensure!(verdict.lost_bytes == 0, "memory {name} was lost: {verdict:?}");
                holdings.free(name)
            }
        }
    }

    /// What the host holds for it.
    ///
    /// # Errors
    /// What `fstat` says.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        match self {
            Self::Linux { guest, .. } => guest.resident_bytes(),
            Self::Model { vm, .. } => vm.resident_bytes(),
        }
    }

    /// The file behind its memory.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(super) fn memory(&self) -> Result<File> {
        match self {
            Self::Linux { guest, .. } => guest.memory().try_clone().context("copying a descriptor"),
            Self::Model { vm, .. } => vm.boot_memory(),
        }
    }

    /// CPU time of what gives memory back: of QEMU's main thread, where its own device works and
    /// which has little else to do, and of all of the daemon. The guest's CPUs are other threads.
    ///
    /// # Errors
    /// If a process is gone.
    pub(super) fn device_cpu_time(&self) -> Result<Duration> {
        let of_daemon = |daemon: &DaemonProcess| host::cpu_time(daemon.pid());
        match self {
            Self::Linux { guest, daemon } => {
                let qemu = host::main_thread_cpu_time(guest.qemu_pid())?;
                Ok(qemu + daemon.as_ref().map_or(Ok(Duration::ZERO), of_daemon)?)
            }
            Self::Model { daemon, .. } => of_daemon(daemon),
        }
    }

    /// Ends it, and what its device had done.
    ///
    /// # Errors
    /// If something does not end well.
    pub(super) fn finish(self) -> Result<Discards> {
        let of_daemon = |mut daemon: DaemonProcess| -> Result<Discards> {
            let summary = daemon.session_summary(WIND_UP)?;
            daemon.terminate(WIND_UP)?;
            Ok(Discards { ranges: summary.ranges, calls: summary.discard_calls })
        };
        match self {
            Self::Linux { guest, daemon } => {
                let own = guest.own_device_discards()?;
                Arc::into_inner(guest).context("the guest is still in use")?.quit()?;
                match daemon {
                    Some(daemon) => of_daemon(daemon),
                    None => Ok(Discards { ranges: own.ranges, calls: own.calls }),
                }
            }
            Self::Model { thread, holdings, vm, daemon } => {
                if let Some(thread) = thread {
                    thread.stop()?;
                }
                drop(holdings);
                drop(vm);
                of_daemon(daemon)
            }
        }
    }
}
