// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of any kind with a device of either kind, to be put under the same workload.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use guest_driver::page_alloc::ZoneType;

use super::daemon::{CountedDaemon, Discards};
use crate::experiment::Context;
use crate::guest::GuestKind;
use vmm_integration::guest::Guest;
use vmm_integration::measure::host;
use vmm_integration::vmm::GuestSpec;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelGuest};
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest, Toolbox};

/// CPUs on which programs run.
pub(super) const CPUS: usize = 2;

/// A device that discards reported memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Device {
    /// None: reporting is off.
    Off,
    /// Our daemon.
    Ours,
    /// QEMU's own balloon device.
    Qemu,
}

/// A running guest with its device.
pub(super) enum Subject {
    /// Linux in QEMU.
    Linux {
        /// The guest.
        guest: Arc<LinuxGuest>,
        /// Our daemon, if that is the device.
        daemon: Option<CountedDaemon>,
    },
    /// The model.
    Model {
        /// The guest.
        guest: Arc<ModelGuest>,
        /// The daemon that it is attached to, reporting or not.
        daemon: CountedDaemon,
    },
    /// A guest of which nothing but [`Guest`] is needed.
    Other {
        /// The guest.
        guest: Arc<Box<dyn Guest>>,
        /// The daemon that it is attached to, reporting or not.
        daemon: CountedDaemon,
    },
}

impl Subject {
    /// Boots a guest with pages of 4 KiB behind its memory, and has it report unless the device is
    /// [`Device::Off`].
    ///
    /// # Errors
    /// If anything does not start.
    pub(super) fn boot(
        guest: GuestKind,
        device: Device,
        memory_bytes: u64,
        context: &Context<'_>,
    ) -> Result<Self> {
        match guest {
            GuestKind::Model => Self::model(device, memory_bytes, context),
            GuestKind::Qemu => {
                Self::linux(&qemu::available()?, device, memory_bytes, None, context)
            }
            GuestKind::UserModeLinux => Self::other(guest, device, memory_bytes, context),
        }
    }

    /// Boots Linux in QEMU. With a device its driver is loaded.
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
    fn model(device: Device, memory_bytes: u64, context: &Context<'_>) -> Result<Self> {
        let daemon = CountedDaemon::start(context, Vec::new())?;
        let mut memory = GuestMemory::flat(memory_bytes, CPUS + 1);
        for zone in &mut memory.layout.zones {
            // Some of what programs need is the kernel's, for which movable zones have no room.
            zone.kind = ZoneType::Normal;
        }
        let guest = ModelGuest::start(&daemon.socket(), ModelConfig::new(memory))?;
        guest.set_reporting(device != Device::Off)?;
        Ok(Self::Model { guest: Arc::new(guest), daemon })
    }

    /// Boots a guest by its VMM, with our daemon.
    fn other(
        guest: GuestKind,
        device: Device,
        memory_bytes: u64,
        context: &Context<'_>,
    ) -> Result<Self> {
        ensure!(device != Device::Qemu, "{guest} has no device of its own");
        let daemon = CountedDaemon::for_guest(guest, context)?;
        let guest = guest.vmm().boot(&GuestSpec { memory_bytes, socket: daemon.socket() })?;
        guest.set_reporting(device == Device::Ours)?;
        Ok(Self::Other { guest: Arc::new(guest), daemon })
    }

    /// The guest without its device.
    pub(super) fn guest(&self) -> &dyn Guest {
        match self {
            Self::Linux { guest, .. } => &**guest,
            Self::Model { guest, .. } => &**guest,
            Self::Other { guest, .. } => &***guest,
        }
    }

    /// What of a real one's memory the host has in transparent huge pages now; of the model nothing
    /// is said.
    ///
    /// # Errors
    /// If QEMU is gone.
    pub(super) fn huge_bytes(&self) -> Result<Option<u64>> {
        self.guest().vmm_pid().map(host::shmem_huge_bytes).transpose()
    }

    /// CPU time of what discards memory: of all of the daemon, and of QEMU's main thread, where its own
    /// device works and which has little else to do. The guest's CPUs are other threads.
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
            Self::Model { daemon, .. } | Self::Other { daemon, .. } => of_daemon(daemon),
        }
    }

    /// What tells, on any thread, the device's CPU time in nanoseconds.
    pub(super) fn device_cpu_nanoseconds(&self) -> Box<dyn FnMut() -> Option<u64> + Send> {
        let (qemu, daemon) = match self {
            Self::Linux { guest, daemon } => {
                (Some(guest.qemu_pid()), daemon.as_ref().map(CountedDaemon::pid))
            }
            Self::Model { daemon, .. } | Self::Other { daemon, .. } => (None, Some(daemon.pid())),
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
            Self::Linux { daemon: Some(daemon), .. }
            | Self::Model { daemon, .. }
            | Self::Other { daemon, .. } => host::cpu_time(daemon.pid()).map(Some),
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
            Self::Linux { .. } | Self::Model { .. } | Self::Other { .. } => Ok(()),
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
            Self::Linux { daemon: Some(daemon), .. }
            | Self::Model { daemon, .. }
            | Self::Other { daemon, .. } => daemon.discards(),
        }
    }

    /// What tells, on any thread, how many bytes it has in use by its own account; nothing where it
    /// does not answer.
    pub(super) fn used_bytes(&self) -> Box<dyn FnMut() -> Option<u64> + Send> {
        match self {
            Self::Linux { guest, .. } => used_bytes_of(Arc::clone(guest) as _),
            Self::Model { guest, .. } => used_bytes_of(Arc::clone(guest) as _),
            Self::Other { guest, .. } => {
                let guest = Arc::clone(guest);
                Box::new(move || guest.used_bytes().ok())
            }
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If something does not end well.
    pub(super) fn finish(self) -> Result<()> {
        let in_use = "the guest is still in use";
        match self {
            Self::Linux { guest, daemon } => {
                Arc::into_inner(guest).context(in_use)?.quit()?;
                daemon.map_or(Ok(()), CountedDaemon::finish)
            }
            Self::Model { guest, daemon } => {
                Box::new(Arc::into_inner(guest).context(in_use)?).shut_down()?;
                daemon.finish()
            }
            Self::Other { guest, daemon } => {
                Arc::into_inner(guest).context(in_use)?.shut_down()?;
                daemon.finish()
            }
        }
    }
}

fn used_bytes_of(guest: Arc<dyn Guest>) -> Box<dyn FnMut() -> Option<u64> + Send> {
    Box::new(move || guest.used_bytes().ok())
}
