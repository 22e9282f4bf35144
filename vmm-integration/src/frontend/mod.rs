// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vhost-user frontend with the driver's rings: the balloon driver and its VMM in one, without a
//! guest.
//!
//! | file | idea |
//! |---|---|
//! | `mod` | [`Attachment`]: connects, negotiates, starts the queues, reconnects |
//! | `options` | [`AttachOptions`]: features, numbering of the queues, memory, timeouts |
//! | `regions` | memory regions that come and go |
//! | `queue` | one virtqueue: its ring, kick and call descriptors |
//! | `line` | [`Line`]: the way to notify a queue from any thread |
//! | `control_message` | [`ControlMessage`]: single requests, also wrong ones |
//! | `config_channel` | configuration changes over the backend channel |
//! | `migration` | [`DirtyLog`] and stopping for a migration |
//! | `watchdog` | shuts the connection down when an answer is late |

use anyhow::{Context, Result, bail, ensure};
use guest_driver::{
    ram::GpaRange,
    virtio::{
        balloon::{self, BalloonConfig, BalloonQueue},
        balloon_driver::Negotiated,
        feature,
        layout::RingLayout,
        ring::Buffer,
    },
};
use std::{collections::BTreeMap, os::unix::net::UnixStream, path::Path, time::Duration};
use vhost::{
    VhostBackend,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{
            VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
            VhostUserVirtioFeatures,
        },
    },
};

use crate::guest_memory::Ram;
use config_channel::ConfigChannel;
use queue::Queue;
use watchdog::Watchdog;

mod config_channel;
mod control_message;
mod line;
mod migration;
mod options;
mod queue;
mod regions;
mod watchdog;

pub use control_message::ControlMessage;
pub use line::Line;
pub use migration::DirtyLog;
pub use options::{AttachOptions, MemoryHandover};

/// Offset of `poison_val` in the configuration space, in bytes.
const POISON_VAL: u32 = 12;
/// More queues than any balloon has, until the backend says how many it has.
const MAX_QUEUES: u64 = 64;
/// Rings start at multiples of this, in bytes.
const RING_ALIGN: u64 = 4096;
/// Room for indirect tables behind the rings, in bytes.
const SCRATCH_BYTES: u64 = 64 << 10;
const CONFIG_BYTES: u32 = 16;

/// A connection to a vhost-user backend with its queues started.
///
/// Every request waits for its answer for at most [`AttachOptions::timeout`], then the connection is
/// shut down. Dropping it closes the connection as a crashed VMM does; an orderly VMM calls
/// [`Attachment::stop`] first.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use vmm_integration::frontend::{AttachOptions, Attachment};
/// use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
///
/// let ram = Ram::new(&RamLayout::flat(256 << 20, Backing::Memfd))?;
/// let socket = "/run/vhost-device-balloon.sock".as_ref();
/// let mut attachment = Attachment::connect(socket, &ram, AttachOptions::default())?;
/// println!("features {:#x}", attachment.features());
/// attachment.stop()?;
/// # Ok(())
/// # }
/// ```
pub struct Attachment {
    ram: Ram,
    options: AttachOptions,
    frontend: Frontend,
    watchdog: Watchdog,
    offered: u64,
    features: u64,
    offered_protocol: VhostUserProtocolFeatures,
    protocol: VhostUserProtocolFeatures,
    config_channel: Option<ConfigChannel>,
    queues: BTreeMap<u16, Queue>,
    /// Regions that the backend knows of, by index.
    announced: Vec<usize>,
    reserved: GpaRange,
    scratch: GpaRange,
}

impl Attachment {
    /// Connects to the backend at `socket` and does what QEMU does until the guest's driver has
    /// said DRIVER_OK (`vhost_user_backend_init`, `vhost_dev_init`, `vhost_dev_start`). The rings
    /// are fresh ones.
    ///
    /// # Errors
    /// When the backend refuses or does not answer, or the options do not fit it or the RAM.
    pub fn connect(socket: &Path, ram: &Ram, options: AttachOptions) -> Result<Self> {
        Self::over(dial(socket)?, ram, options)
    }

    /// As [`Attachment::connect`], over a connection that is there.
    ///
    /// # Errors
    /// See [`Attachment::connect`].
    pub fn over(stream: UnixStream, ram: &Ram, options: AttachOptions) -> Result<Self> {
        Self::open(stream, ram.clone(), options, BTreeMap::new(), None)
    }

    /// Connects to another backend, or to the same again, under a driver that goes on with its
    /// rings: what a VMM does when a backend was restarted. Chains that were not returned stay
    /// available.
    ///
    /// # Errors
    /// See [`Attachment::connect`]; also where not every feature in use is offered again.
    pub fn reconnect(self, socket: &Path) -> Result<Self> {
        let ram = self.ram.clone();
        self.go_on(socket, ram, None)
    }

    /// Under the same driver, with a backend that loads `state` first where there is one.
    fn go_on(self, socket: &Path, ram: Ram, state: Option<&[u8]>) -> Result<Self> {
        let (features, queues) = (self.features, self.queues);
        // Decisions of the first connection stay, and so do regions that were added or removed since.
        let regions = Some(self.announced);
        let poison = self.options.poison.filter(|_| state.is_none());
        let options = AttachOptions { features, regions, poison, free_pages: None, ..self.options };
        // The backend has to see the hang-up first: it may serve one frontend at a time.
        drop((self.frontend, self.watchdog));
        let again = Self::open(dial(socket)?, ram, options, queues, state)?;
        ensure!(
            again.features == features,
            "the backend offers {:#x} where the driver uses {features:#x}",
            again.offered
        );
        Ok(again)
    }

    fn open(
        stream: UnixStream,
        ram: Ram,
        options: AttachOptions,
        queues: BTreeMap<u16, Queue>,
        state: Option<&[u8]>,
    ) -> Result<Self> {
        let watchdog = Watchdog::new(stream.try_clone()?)?;
        let empty = GpaRange::default();
        let mut attachment = Self {
            ram,
            options,
            frontend: Frontend::from_stream(stream, MAX_QUEUES),
            watchdog,
            offered: 0,
            features: 0,
            offered_protocol: VhostUserProtocolFeatures::empty(),
            protocol: VhostUserProtocolFeatures::empty(),
            config_channel: None,
            queues: BTreeMap::new(),
            announced: Vec::new(),
            reserved: empty,
            scratch: empty,
        };
        let max_queues = attachment.negotiate()?;
        if let Some(state) = state {
            attachment.load_state(state)?;
        }
        let regions = match &attachment.options.regions {
            Some(regions) => regions.clone(),
            None => (0..attachment.ram.regions().len()).collect(),
        };
        let indices = attachment.queue_indices(max_queues)?;
        let places = attachment.place_rings(&regions, &indices)?;
        attachment.announce(&regions)?;
        attachment.start_all(&places, queues)?;
        Ok(attachment)
    }

    /// Everything until the driver's features are known to the backend. Returns how many queues
    /// that has.
    fn negotiate(&mut self) -> Result<u64> {
        self.offered = self.control("get features", |frontend| frontend.get_features())?;
        let mut max_queues = MAX_QUEUES;
        if self.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0 {
            self.negotiate_protocol()?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            max_queues = self.control("get queue number", |frontend| frontend.get_queue_num())?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let reply_ack = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
            let channel = ConfigChannel::new(reply_ack)?;
            self.control("set backend channel", |frontend| {
                frontend.set_backend_request_fd(&channel)
            })?;
            self.config_channel = Some(channel);
        }
        self.control("set owner", |frontend| frontend.set_owner())?;
        let mut features = self.offered & self.options.features;
        if let Some(free_pages) = self.options.free_pages {
            let decided = Negotiated::new(self.offered, self.options.features, free_pages);
            features = decided.features;
            // Kept for the next backend, which knows nothing of it.
            self.options.poison = decided.poison_val;
        }
        if let Some(poison) = self.options.poison
            && features & balloon::feature::PAGE_POISON != 0
            && self.protocol.contains(VhostUserProtocolFeatures::CONFIG)
        {
            self.write_config(POISON_VAL, &poison.to_le_bytes())?;
        }
        self.set_features(features)?;
        Ok(max_queues)
    }

    fn negotiate_protocol(&mut self) -> Result<()> {
        self.offered_protocol =
            self.control("get protocol features", |frontend| frontend.get_protocol_features())?;
        let protocol = self.offered_protocol & self.options.protocol_features;
        self.control("set protocol features", |frontend| frontend.set_protocol_features(protocol))?;
        self.protocol = protocol;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(())
    }

    fn queue_indices(&self, max_queues: u64) -> Result<Vec<u16>> {
        let indices = match &self.options.queues {
            Some(indices) => indices.clone(),
            None => BalloonQueue::ALL.iter().filter_map(|queue| self.index(*queue)).collect(),
        };
        for index in &indices {
            ensure!(
                u64::from(*index) < max_queues,
                "queue {index} is wanted and the backend has {max_queues}"
            );
        }
        Ok(indices)
    }

    /// Where each queue's ring lies. The scratch area comes behind them.
    fn place_rings(
        &mut self,
        regions: &[usize],
        indices: &[u16],
    ) -> Result<Vec<(u16, RingLayout)>> {
        let start = match self.options.ring_area {
            Some(start) => start,
            None => {
                let first = regions.first().context("no region to put the rings in")?;
                let region = self.ram.regions().get(*first).context("no such region")?;
                region.range.start()
            }
        };
        let size = self.options.queue_size;
        let mut places = Vec::new();
        let mut at = start;
        for index in indices {
            places.push((*index, RingLayout::contiguous(at, size)?));
            let stride = RingLayout::contiguous_bytes(size).next_multiple_of(RING_ALIGN);
            at = at.checked_add(stride).context("the rings pass 2^64")?;
        }
        self.scratch = GpaRange::new(at, SCRATCH_BYTES).context("the rings pass 2^64")?;
        let end = self.scratch.end().context("the rings pass 2^64")?;
        self.reserved = GpaRange::between(start, end);
        ensure!(self.ram.contains(self.reserved), "rings at {} are not in RAM", self.reserved);
        Ok(places)
    }

    /// What the backend offered.
    pub fn offered_features(&self) -> u64 {
        self.offered
    }

    /// What was acked.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features that the backend offered.
    pub fn offered_protocol_features(&self) -> VhostUserProtocolFeatures {
        self.offered_protocol
    }

    /// The protocol features that were acked.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// The index of a queue, where the acked features bring it.
    pub fn index(&self, queue: BalloonQueue) -> Option<u16> {
        self.options.numbering.index(queue, self.features)
    }

    /// The index of the reporting queue, where reporting was acked.
    pub fn reporting_queue(&self) -> Option<u16> {
        self.index(BalloonQueue::Reporting)
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What the driver uses itself, rings and scratch area: never report it.
    pub fn reserved(&self) -> GpaRange {
        self.reserved
    }

    /// Room for indirect tables.
    pub fn scratch(&self) -> GpaRange {
        self.scratch
    }

    /// Makes any request of the vhost crate's frontend. `what` names it in the error.
    ///
    /// # Errors
    /// What the request says, also where it is not answered in time.
    pub fn control<T>(
        &mut self,
        what: &'static str,
        request: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T> {
        let armed = self.watchdog.arm(self.options.timeout);
        let result = request(&mut self.frontend);
        drop(armed);
        result.with_context(|| match self.watchdog.expired() {
            true => format!("{what}: no answer within {:?}", self.options.timeout),
            false => what.to_owned(),
        })
    }

    /// Acks exactly `features`, now.
    ///
    /// # Errors
    /// When the backend refuses them.
    pub fn set_features(&mut self, features: u64) -> Result<()> {
        self.control("set features", |frontend| frontend.set_features(features))?;
        self.features = features;
        Ok(())
    }

    /// Whether the rings use event indices.
    fn event_idx(&self) -> bool {
        self.features & feature::EVENT_IDX != 0
    }

    /// Reads `len` bytes of the configuration space from `offset`.
    ///
    /// # Errors
    /// When the backend refuses or VHOST_USER_PROTOCOL_F_CONFIG was not negotiated.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let zeroes = vec![0; usize::try_from(len)?];
        let flags = VhostUserConfigFlags::empty();
        let read = self
            .control("get config", |frontend| frontend.get_config(offset, len, flags, &zeroes))?;
        Ok(read.1)
    }

    /// Writes the configuration space from `offset`, as a running guest's write is passed on.
    ///
    /// # Errors
    /// See [`Attachment::read_config`].
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        let flags = VhostUserConfigFlags::empty();
        self.control("set config", |frontend| frontend.set_config(offset, flags, bytes))
    }

    /// Writes it with other flags than those of a guest's write: 1 is that of a migration, which vhost calls
    /// writable.
    ///
    /// # Errors
    /// See [`Attachment::read_config`].
    pub fn write_config_with(&mut self, offset: u32, bytes: &[u8], flags: u32) -> Result<()> {
        let flags =
            VhostUserConfigFlags::from_bits(flags).context("flags that vhost does not know")?;
        self.control("set config", |frontend| frontend.set_config(offset, flags, bytes))
    }

    /// The balloon's configuration space.
    ///
    /// # Errors
    /// See [`Attachment::read_config`].
    pub fn get_config(&mut self) -> Result<BalloonConfig> {
        let bytes = self.read_config(0, CONFIG_BYTES)?;
        let bytes = bytes.first_chunk().context("the configuration space is too short")?;
        Ok(BalloonConfig::from_bytes(bytes))
    }

    /// Writes `poison_val` as QEMU passes it on: with the whole space around it.
    ///
    /// # Errors
    /// See [`Attachment::read_config`].
    pub fn set_poison(&mut self, poison: u32) -> Result<()> {
        let config = BalloonConfig { poison_val: poison, ..self.get_config()? };
        self.write_config(0, &config.to_bytes())
    }

    /// Has the device return a chain of the inflate queue that names no page. A driver that says what
    /// is in its balloon has used the queue, and the device forgets what was said before that.
    ///
    /// # Errors
    /// When the queue is not set up, or the chain does not come back.
    pub fn use_balloon(&mut self) -> Result<()> {
        let queue = self.index(BalloonQueue::Inflate).context("no inflate queue")?;
        let nothing = Buffer::writable(self.scratch.start(), 4);
        self.submit_and_wait(queue, &[nothing]).map(drop)
    }

    /// Waits for the backend to say that the configuration space has changed; says whether it did.
    ///
    /// # Errors
    /// When VHOST_USER_PROTOCOL_F_BACKEND_REQ was not negotiated, or another request came.
    pub fn wait_config_change(&mut self, timeout: Duration) -> Result<bool> {
        match &mut self.config_channel {
            Some(channel) => channel.wait(timeout),
            None => bail!("there is no channel from the backend"),
        }
    }
}

fn dial(socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))
}
