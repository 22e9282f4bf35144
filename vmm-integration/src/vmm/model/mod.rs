// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small VMM whose guest is the model: real memory behind the model's page frames, and the
//! balloon driver's queues attached to the daemon over a real socket.
//!
//! | file | what |
//! |---|---|
//! | `layout` | where the model's sections lie in memory files and regions |
//! | `holdings` | the guest's memory in use, whose contents name it |
//! | `reporter_thread` | the reporter in real time |
//! | `vmstat_thread` | the statistics of the guest's CPUs in real time |
//! | `faulting` | programs that fault memory in |
//! | `guest` | all of these as a [`crate::guest::Guest`] |
//! | `end_to_end` | how fast memory is reclaimed from the model, and what takes the time |
//! | `large` | how long a guest with a large and mostly empty address space takes to start |

mod end_to_end;
mod faulting;
mod guest;
mod holdings;
mod large;
mod layout;
mod reporter_thread;
mod vmstat_thread;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::zone::Zone;
use guest_driver::page_alloc::{Mm, MovePages, VMSTAT_INTERVAL, ZoneId};
use guest_driver::ram::Gpa;
use guest_driver::reporting::ZeroReports;
use guest_driver::virtio::balloon::{self, BalloonQueue};
use guest_driver::virtio::balloon_driver::{
    FreePages, PageQueue, ReportingQueue, Requests, StatsQueue,
};
use guest_driver::virtio::feature;

use super::{GuestKind, GuestSpec, Vmm};
use crate::fetch::SetupEvent;
use crate::frontend::{AttachOptions, Attachment, Line};
use crate::guest::Guest;
use crate::guest_memory::Ram;

pub use end_to_end::{Backed, EndToEnd, Figures, Pages, Shares, end_to_end};
pub use guest::ModelGuest;
pub use holdings::{Holdings, Verdict};
pub use large::{LargeStart, large_memory, large_start};
pub use layout::{GuestMemory, Slot};
pub use reporter_thread::{Ended, ReporterThread};

use layout::Plan;
use vmstat_thread::VmstatThread;

/// Where each queue's buffer lies in the driver's memory, in bytes from its start.
const BUFFERS: [(BalloonQueue, u64); 4] = [
    (BalloonQueue::Inflate, 0),
    (BalloonQueue::Deflate, 4096),
    (BalloonQueue::Stats, 2 * 4096),
    (BalloonQueue::Reporting, 3 * 4096),
];

/// CPUs of the guest that [`SmallVmm`] starts.
const CPUS: usize = 2;

/// This VMM as a row of [`super::ALL`].
pub struct SmallVmm;

impl Vmm for SmallVmm {
    fn name(&self) -> &'static str {
        "model"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Programs]
    }

    fn prepare(&self, _: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        Ok("the model of a guest, and a small VMM".to_owned())
    }

    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>> {
        let memory = GuestMemory::flat(spec.memory_bytes, CPUS);
        Ok(Box::new(ModelGuest::start(&spec.socket, ModelConfig::new(memory))?))
    }
}

/// How a model guest is built and attached.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Its memory.
    pub memory: GuestMemory,
    /// What its free pages need to hold.
    pub free_pages: FreePages,
    /// Whether reports are put into an indirect table where that was negotiated.
    pub indirect: bool,
    /// How long inflating and deflating wait for an acknowledgement; by default as long as it takes,
    /// as in Linux. For reports the reporter's configuration says it.
    pub ack_timeout: Option<Duration>,
    /// How it is attached. Regions and the rings' place are the model's own to choose.
    pub attach: AttachOptions,
}

impl ModelConfig {
    /// A guest with this memory that does as Linux does.
    pub fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            free_pages: FreePages::Anything,
            indirect: true,
            ack_timeout: None,
            attach: AttachOptions::default(),
        }
    }
}

/// A slot for memory that can be plugged in.
#[derive(Clone, Debug)]
struct Dimm {
    slot: Slot,
    /// The index of its region in the RAM.
    region: usize,
    plugged: bool,
}

/// A model guest with its memory and its balloon device.
///
/// Dropping it hangs up on the daemon. Queues that were taken out of it then wait for nothing any
/// more: a request that is under way times out.
pub struct ModelVm {
    config: ModelConfig,
    mm: Arc<Mm>,
    ram: Ram,
    dimms: Vec<Dimm>,
    /// None after a reconnection has failed.
    device: Option<Attachment>,
    /// Time passes for the guest while it is there.
    _vmstat: VmstatThread,
}

impl ModelVm {
    /// Builds the guest and attaches it to the daemon at `socket`. All its memory is free then.
    ///
    /// # Errors
    /// When its memory cannot be laid out or had, or the daemon refuses it.
    pub fn start(socket: &Path, config: ModelConfig) -> Result<Self> {
        let plan = Plan::new(&config.memory, config.attach.queue_size)?;
        let ram = Ram::new(&plan.ram).context("the guest's memory")?;
        if config.memory.huge_pages {
            ram.advise_huge_pages()?;
        }
        let index_of = |at: Gpa| {
            let mut regions = ram.regions().iter();
            regions.position(|region| region.range.start() == at).context("no such region")
        };
        let mut at_first = plan.boot.iter().map(|at| index_of(*at)).collect::<Result<Vec<_>>>()?;
        at_first.push(index_of(plan.driver)?);
        let slots = config.memory.slots.iter().zip(&plan.slots);
        let dimms = slots
            .map(|(slot, at)| {
                Ok(Dimm { slot: slot.clone(), region: index_of(*at)?, plugged: false })
            })
            .collect::<Result<_>>()?;
        let options = AttachOptions {
            free_pages: Some(config.free_pages),
            ring_area: Some(plan.driver),
            regions: Some(at_first),
            ..config.attach.clone()
        };
        let mm = Arc::new(Mm::new(&config.memory.layout));
        let device = Some(Attachment::connect(socket, &ram, options)?);
        let cpus = config.memory.layout.cpus;
        let vmstat = VmstatThread::start(Arc::clone(&mm), cpus, VMSTAT_INTERVAL)?;
        Ok(Self { config, mm, ram, dimms, device, _vmstat: vmstat })
    }

    /// The guest's memory management.
    pub fn mm(&self) -> &Arc<Mm> {
        &self.mm
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What the guest has in use, as it sees it: managed less free pages, in bytes. Pages that are
    /// held for a report count as in use, as they do in Linux.
    pub fn used_bytes(&self) -> u64 {
        used_bytes(&self.mm)
    }

    /// What the guest has at all, in bytes.
    pub fn managed_bytes(&self) -> u64 {
        zones(&self.mm).map(Zone::managed_pages).sum::<u64>() * PAGE_BYTES
    }

    /// What the host holds for the guest's memory, the driver's own left out, in bytes.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn resident_bytes(&self) -> Result<u64> {
        let slots = self.dimms.len();
        let bytes = |file| layout::resident_bytes(self.ram.file(file));
        (0..=slots).map(bytes).sum()
    }

    /// The file of the memory that was there at the start.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn boot_memory(&self) -> Result<std::fs::File> {
        Ok(self.ram.file(layout::BOOT_FILE).try_clone_to_owned()?.into())
    }

    /// The connection to the daemon.
    ///
    /// # Errors
    /// When there is none since a reconnection failed.
    pub fn device(&mut self) -> Result<&mut Attachment> {
        self.device.as_mut().context("the device is gone: reconnecting it has failed")
    }

    /// A queue and where its buffer lies.
    fn take(&mut self, queue: BalloonQueue) -> Result<(Requests<Ram, Line>, Gpa, u64)> {
        let device = self.device()?;
        let features = device.features();
        let index = device.index(queue).with_context(|| format!("{queue:?} was not negotiated"))?;
        let (ring, line) = device.take_queue(index)?;
        let offset = BUFFERS.iter().find(|(of, _)| *of == queue).map(|(_, offset)| *offset);
        let offset = offset.with_context(|| format!("the model does not drive {queue:?}"))?;
        let buffer = device.scratch().start().checked_add(offset).context("no room")?;
        Ok((Requests::new(ring, line), buffer, features))
    }

    /// The reporting queue, which can be used on any thread; once.
    ///
    /// # Errors
    /// When it was not negotiated, or taken before.
    pub fn take_reporting(&mut self) -> Result<ReportingQueue<Ram, Line>> {
        let (requests, table, features) = self.take(BalloonQueue::Reporting)?;
        let indirect = self.config.indirect && features & feature::INDIRECT_DESC != 0;
        let queue = ReportingQueue::new(requests, indirect.then_some(table))?;
        let init = features & balloon::feature::DEVICE_INIT_REPORTED != 0;
        Ok(if init { queue.with_init() } else { queue })
    }

    /// The reports that leave their pages known to be zero: those of which the device says so, if that was
    /// negotiated.
    ///
    /// # Errors
    /// See [`ModelVm::device`].
    pub fn zero_reports(&mut self) -> Result<ZeroReports> {
        let init = self.device()?.features() & balloon::feature::DEVICE_INIT_REPORTED != 0;
        Ok(if init { ZeroReports::AsTold } else { ZeroReports::None })
    }

    /// The inflate or the deflate queue; once.
    ///
    /// # Errors
    /// When it was taken before, or `queue` is another one.
    pub fn take_pages(&mut self, queue: BalloonQueue) -> Result<PageQueue<Ram, Line>> {
        ensure!(
            matches!(queue, BalloonQueue::Inflate | BalloonQueue::Deflate),
            "{queue:?} does not carry page frame numbers"
        );
        let (requests, buffer, _) = self.take(queue)?;
        Ok(PageQueue::new(requests, self.ram.clone(), buffer, self.config.ack_timeout))
    }

    /// The statistics queue; once.
    ///
    /// # Errors
    /// When it was not negotiated, or taken before.
    pub fn take_stats(&mut self) -> Result<StatsQueue<Ram, Line>> {
        let (requests, buffer, _) = self.take(BalloonQueue::Stats)?;
        Ok(StatsQueue::new(requests, self.ram.clone(), buffer))
    }

    /// Plugs the memory of a slot in and takes it online. The daemon learns of it first, since it
    /// is reported from then on.
    ///
    /// # Errors
    /// When there is no such slot, it is plugged in, or the daemon refuses.
    pub fn hot_add(&mut self, slot: usize) -> Result<()> {
        let dimm = self.dimm(slot)?;
        ensure!(!dimm.plugged, "the memory of slot {slot} is plugged in already");
        self.device()?.add_region(dimm.region)?;
        self.dimms[slot].plugged = true;
        for section in dimm.slot.sections.clone() {
            self.mm.add_section(section, dimm.slot.zone);
        }
        for block in self.blocks(&dimm) {
            self.mm.online_block(block).with_context(|| format!("memory block {block}"))?;
        }
        Ok(())
    }

    /// Takes the memory of a slot offline and unplugs it. The daemon learns of it last: until then
    /// a report may be under way. Its contents are gone from the host then.
    ///
    /// # Errors
    /// When there is no such slot, nothing is plugged in, a block of it cannot be taken offline
    /// ([`guest_driver::page_alloc::OfflineError`]; all of it is online again then), or the daemon refuses.
    pub fn hot_remove(
        &mut self,
        slot: usize,
        movers: &dyn MovePages,
        give_up: &dyn Fn() -> bool,
    ) -> Result<()> {
        let dimm = self.dimm(slot)?;
        ensure!(dimm.plugged, "nothing is plugged into slot {slot}");
        let blocks = self.blocks(&dimm);
        for block in blocks.clone() {
            let Err(error) = self.mm.offline_block(block, movers, give_up) else { continue };
            for block in blocks.start..block {
                self.mm.online_block(block).context("taking memory online again")?;
            }
            return Err(error).with_context(|| format!("memory block {block}"));
        }
        self.device()?.remove_region(dimm.region)?;
        self.dimms[slot].plugged = false;
        layout::drop_contents(self.ram.file(layout::slot_file(slot)), &self.ram, dimm.region)
    }

    fn dimm(&self, slot: usize) -> Result<Dimm> {
        match self.dimms.get(slot) {
            Some(dimm) => Ok(dimm.clone()),
            None => bail!("there is no slot {slot} for memory, of {}", self.dimms.len()),
        }
    }

    fn blocks(&self, dimm: &Dimm) -> std::ops::Range<usize> {
        let per_block = self.mm.geometry().sections_per_block;
        dimm.slot.sections.start / per_block..dimm.slot.sections.end / per_block
    }

    /// Attaches the guest to another daemon, or to the same again, at `socket`. The guest does not
    /// notice: queues that were taken go on, and a request under way is carried out by the new one.
    ///
    /// # Errors
    /// When it cannot be attached. The device is gone for good then.
    pub fn reconnect(&mut self, socket: &Path) -> Result<()> {
        let device = self.device.take().context("the device is gone")?;
        self.device = Some(device.reconnect(socket)?);
        Ok(())
    }
}

/// See [`ModelVm::used_bytes`].
pub fn used_bytes(mm: &Mm) -> u64 {
    let used = |zone: &Zone| zone.managed_pages().saturating_sub(zone.free_pages());
    zones(mm).map(used).sum::<u64>() * PAGE_BYTES
}

fn zones(mm: &Mm) -> impl Iterator<Item = &Zone> {
    (0..mm.zone_count()).map(|zone| mm.zone(ZoneId(zone)))
}
