// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! alioth's vhost-user frontend as a balloon, with the two things that alioth 0.12 lacks.
//!
//! * A lock. The frontend's one connection is used by the guest's CPUs, which read the configuration, and by the
//!   device's thread, which starts and stops queues. Without a lock one takes the answer of the other.
//! * A channel on which the backend says that the configuration has changed.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use alioth::hv::IoeventFd;
use alioth::mem::emulated::{Action, Mmio};
use alioth::mem::mapped::{ArcMemPages, RamBus};
use alioth::mem::{self, LayoutChanged, MemRegion};
use alioth::sync::notifier::Notifier;
use alioth::virtio::dev::{DevParam, Virtio, WakeEvent};
use alioth::virtio::queue::{QueueReg, VirtQueue};
use alioth::virtio::vu::bindings::{VuBackMsg, VuFeature};
use alioth::virtio::vu::frontend::{VuDevConfig, VuDevFeature, VuFrontend};
use alioth::virtio::vu::{self, conn::VuChannel};
use alioth::virtio::worker::mio::{ActiveMio, Mio, VirtioMio};
use alioth::virtio::{DeviceId, Error, IrqSender};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use parking_lot::Mutex;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Held while a message waits for its answer.
pub(crate) type Lock = Arc<Mutex<()>>;

/// The balloon's backend, to be connected to.
pub(crate) struct BalloonParam {
    pub(crate) socket: PathBuf,
    pub(crate) lock: Lock,
}

impl DevParam for BalloonParam {
    type Device = Balloon;

    fn build(self, name: impl Into<Arc<str>>) -> Result<Balloon> {
        let features = VuFeature::CONFIG | VuFeature::BACKEND_REQ;
        let frontend = VuFrontend::new(name, self.socket, DeviceId::BALLOON, features)?;
        Ok(Balloon { frontend, lock: self.lock })
    }

    fn needs_mem_shared_fd(&self) -> bool {
        true
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct Balloon {
    frontend: VuFrontend,
    lock: Lock,
}

impl Virtio for Balloon {
    type Config = Config;
    type Feature = VuDevFeature;

    fn name(&self) -> &str {
        self.frontend.name()
    }

    fn id(&self) -> DeviceId {
        self.frontend.id()
    }

    fn num_queues(&self) -> u16 {
        self.frontend.num_queues()
    }

    fn config(&self) -> Arc<Config> {
        Arc::new(Config { config: self.frontend.config(), lock: self.lock.clone() })
    }

    fn feature(&self) -> u128 {
        self.frontend.feature()
    }

    fn spawn_worker<S: IrqSender, E: IoeventFd>(
        self,
        event_rx: Receiver<WakeEvent<S, E>>,
        memory: Arc<RamBus>,
        queue_regs: Arc<[QueueReg]>,
    ) -> Result<(JoinHandle<()>, Arc<Notifier>)> {
        Mio::spawn_worker(self, event_rx, memory, queue_regs)
    }

    fn shared_mem_regions(&self) -> Option<Arc<MemRegion>> {
        self.frontend.shared_mem_regions()
    }

    fn ioeventfd_offloaded(&self, queue: u16) -> Result<bool> {
        self.frontend.ioeventfd_offloaded(queue)
    }

    fn mem_change_callback(&self) -> Option<Box<dyn LayoutChanged>> {
        let memory = self.frontend.mem_change_callback()?;
        Some(Box::new(Memory { memory, lock: self.lock.clone() }))
    }
}

impl VirtioMio for Balloon {
    fn activate<'m, Q, S, E>(
        &mut self,
        feature: u128,
        active: &mut ActiveMio<'_, '_, 'm, Q, S, E>,
    ) -> Result<()>
    where
        Q: VirtQueue<'m>,
        S: IrqSender,
        E: IoeventFd,
    {
        let _lock = self.lock.lock();
        self.frontend.activate(feature, active)?;
        if let Some(channel) = self.frontend.channel() {
            channel.conn.set_nonblocking(true)?;
            // Behind the tokens of the queues' errors. The frontend takes it off when the device is reset.
            let token = Token(self.frontend.num_queues().into());
            let fd = channel.conn.as_raw_fd();
            active.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        Ok(())
    }

    fn handle_queue<'m, Q, S, E>(
        &mut self,
        queue: u16,
        active: &mut ActiveMio<'_, '_, 'm, Q, S, E>,
    ) -> Result<()>
    where
        Q: VirtQueue<'m>,
        S: IrqSender,
        E: IoeventFd,
    {
        self.frontend.handle_queue(queue, active)
    }

    fn handle_event<'m, Q, S, E>(
        &mut self,
        event: &Event,
        active: &mut ActiveMio<'_, '_, 'm, Q, S, E>,
    ) -> Result<()>
    where
        Q: VirtQueue<'m>,
        S: IrqSender,
        E: IoeventFd,
    {
        let (name, token) = (self.frontend.name(), event.token());
        match self.frontend.channel() {
            Some(channel) if token == Token(self.frontend.num_queues().into()) => {
                receive(name, channel, || active.irq_sender.config_irq())
            }
            _ => {
                log::error!("{name}: the backend reports an error of queue {}", token.0);
                Ok(())
            }
        }
    }

    fn reset(&mut self, registry: &Registry) {
        let _lock = self.lock.lock();
        self.frontend.reset(registry);
    }
}

/// Takes what has come on the channel.
fn receive(name: &str, channel: &VuChannel, config_changed: impl Fn()) -> Result<()> {
    loop {
        let message = match channel.recv_msg(&mut []) {
            Ok(message) => message,
            Err(vu::Error::System { error, .. }) if error.kind() == ErrorKind::WouldBlock => {
                return Ok(());
            }
            // The backend is gone. The device's thread goes on, as without a channel.
            Err(vu::Error::System { error, .. })
                if error.kind() == ErrorKind::ConnectionAborted =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        match VuBackMsg::from(message.request) {
            VuBackMsg::CONFIG_CHANGE_MSG if message.size == 0 => config_changed(),
            _ => log::error!("{name}: unexpected message of the backend: {message:?}"),
        }
        if message.flag.need_reply() {
            channel.reply(VuBackMsg::from(message.request), &0_u64, &[])?;
        }
    }
}

/// The configuration space.
#[derive(Debug)]
pub(crate) struct Config {
    config: Arc<VuDevConfig>,
    lock: Lock,
}

impl Mmio for Config {
    fn size(&self) -> u64 {
        self.config.size()
    }

    fn read(&self, offset: u64, size: u8) -> mem::Result<u64> {
        let _lock = self.lock.lock();
        self.config.read(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) -> mem::Result<Action> {
        let _lock = self.lock.lock();
        self.config.write(offset, size, value)
    }
}

/// Tells the backend about guest memory.
#[derive(Debug)]
struct Memory {
    memory: Box<dyn LayoutChanged>,
    lock: Lock,
}

impl LayoutChanged for Memory {
    fn ram_added(&self, gpa: u64, pages: &ArcMemPages) -> mem::Result<()> {
        let _lock = self.lock.lock();
        self.memory.ram_added(gpa, pages)
    }

    fn ram_removed(&self, gpa: u64, pages: &ArcMemPages) -> mem::Result<()> {
        let _lock = self.lock.lock();
        self.memory.ram_removed(gpa, pages)
    }
}
