// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of either kind with a device of either kind, to be put under the same workload.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use guest_driver::page_alloc::ZoneType;
use guest_driver::reporting::{Config, Reporter};

use super::daemon::{CountedDaemon, Discards};
use crate::experiment::Context;
use vmm_integration::linux_guest::AgentClient;
use vmm_integration::measure::host;
use vmm_integration::vmm::model::{self, GuestMemory, ModelConfig, ModelVm, ReporterThread};
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest, Toolbox};

/// CPUs on which programs run.
pub(super) const CPUS: usize = 2;

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

/// A running guest.
pub(super) enum Guest {
    /// A real one.
    Linux {
        /// In QEMU.
        guest: Arc<LinuxGuest>,
        /// Ours, if that is the device.
        daemon: Option<CountedDaemon>,
    },
    /// The model.
    Model {
        /// The reporter, unless reporting is off.
        thread: Option<ReporterThread>,
        /// The guest.
        vm: Box<ModelVm>,
        /// Which it is attached to, reporting or not.
        daemon: CountedDaemon,
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
                Some(CountedDaemon::start(context, args)?)
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

    /// Starts the model, in the default configuration, with a CPU more than [`CPUS`]: a replay needs
    /// that.
    ///
    /// # Errors
    /// If anything does not start.
    pub(super) fn model(device: Device, memory_bytes: u64, context: &Context<'_>) -> Result<Self> {
        let daemon = CountedDaemon::start(context, Vec::new())?;
        let mut memory = GuestMemory::flat(memory_bytes, CPUS + 1);
        for zone in &mut memory.layout.zones {
            // Some of what programs need is the kernel's, for which movable zones have no room.
            zone.kind = ZoneType::Normal;
        }
        let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory))?;
        let thread = match device {
            Device::Off => None,
            Device::Ours | Device::Qemu => {
                let queue = vm.take_reporting()?;
                let reporter = Reporter::new(Arc::clone(vm.mm()), Config::default())?;
                Some(ReporterThread::start(reporter, queue)?)
            }
        };
        Ok(Self::Model { thread, vm: Box::new(vm), daemon })
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

    /// The program in a real guest.
    ///
    /// # Errors
    /// Of the model, which has none.
    pub(super) fn agent(&self) -> Result<&AgentClient> {
        match self {
            Self::Linux { guest, .. } => Ok(guest.agent()),
            Self::Model { .. } => bail!("the model has no agent"),
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

    /// What of a real one's memory the host has in transparent huge pages now; of the model nothing
    /// is said.
    ///
    /// # Errors
    /// If QEMU is gone.
    pub(super) fn huge_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Linux { guest, .. } => host::shmem_huge_bytes(guest.qemu_pid()).map(Some),
            Self::Model { .. } => Ok(None),
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
        let of_daemon = |daemon: &CountedDaemon| host::cpu_time(daemon.pid());
        match self {
            Self::Linux { guest, daemon } => {
                let qemu = host::main_thread_cpu_time(guest.qemu_pid())?;
                Ok(qemu + daemon.as_ref().map_or(Ok(Duration::ZERO), of_daemon)?)
            }
            Self::Model { daemon, .. } => of_daemon(daemon),
        }
    }

    /// What tells, on any thread, the device's CPU time in nanoseconds.
    pub(super) fn device_cpu_nanoseconds(&self) -> Box<dyn FnMut() -> Option<u64> + Send> {
        let (qemu, daemon) = match self {
            Self::Linux { guest, daemon } => {
                (Some(guest.qemu_pid()), daemon.as_ref().map(CountedDaemon::pid))
            }
            Self::Model { daemon, .. } => (None, Some(daemon.pid())),
        };
        Box::new(move || {
            let of = |time: Result<Duration>| time.unwrap_or_default();
            let qemu = qemu.map_or(Duration::ZERO, |pid| of(host::main_thread_cpu_time(pid)));
            let daemon = daemon.map_or(Duration::ZERO, |pid| of(host::cpu_time(pid)));
            u64::try_from((qemu + daemon).as_nanos()).ok()
        })
    }

    /// CPU time of our daemon alone, if that is the device.
    ///
    /// # Errors
    /// If it is gone.
    pub(super) fn daemon_cpu_time(&self) -> Result<Option<Duration>> {
        match self {
            Self::Linux { daemon: None, .. } => Ok(None),
            Self::Linux { daemon: Some(daemon), .. } | Self::Model { daemon, .. } => {
                host::cpu_time(daemon.pid()).map(Some)
            }
        }
    }

    /// Whether QEMU's own device counts what it does, which costs it CPU time. It does at first; our
    /// daemon always does.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub(super) fn count_calls(&self, on: bool) -> Result<()> {
        match self {
            Self::Linux { guest, daemon: None } => guest.count_own_discards(on),
            Self::Linux { .. } | Self::Model { .. } => Ok(()),
        }
    }

    /// What its device has done so far.
    ///
    /// # Errors
    /// If it does not say.
    pub(super) fn discards(&self) -> Result<Discards> {
        match self {
            Self::Linux { guest, daemon: None } => {
                let qemu::DiscardCount { ranges, calls, bytes, .. } =
                    guest.own_device_discards()?;
                Ok(Discards { ranges, calls, bytes })
            }
            Self::Linux { daemon: Some(daemon), .. } | Self::Model { daemon, .. } => {
                daemon.discards()
            }
        }
    }

    /// What tells, on any thread, how many bytes it has in use by its own account; nothing where it
    /// does not answer.
    pub(super) fn used_bytes(&self) -> Box<dyn FnMut() -> Option<u64> + Send> {
        match self {
            Self::Linux { guest, .. } => {
                let guest = Arc::clone(guest);
                Box::new(move || Some(guest.agent().meminfo().ok()?.used_bytes()))
            }
            Self::Model { vm, .. } => {
                let mm = Arc::clone(vm.mm());
                Box::new(move || Some(model::used_bytes(&mm)))
            }
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If something does not end well.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Linux { guest, daemon } => {
                Arc::into_inner(guest).context("the guest is still in use")?.quit()?;
                daemon.map_or(Ok(()), CountedDaemon::finish)
            }
            Self::Model { thread, vm, daemon } => {
                if let Some(thread) = thread {
                    thread.stop()?;
                }
                drop(vm);
                daemon.finish()
            }
        }
    }
}
