// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine of alioth's parts.
//!
//! `alioth::vm::Machine` keeps its board to itself, and its console is a terminal.

use std::ffi::CString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use alioth::arch::layout::PORT_COM1;
use alioth::board::{Board, BoardConfig, CpuConfig};
use alioth::device::ioapic::IoApic;
use alioth::device::serial::Serial;
use alioth::hv::{Hypervisor, Kvm, KvmConfig, Vm};
use alioth::loader::{Executable, Payload};
use alioth::mem::{MemBackend, MemConfig};
use alioth::pci::Pci;
use alioth::virtio::dev::{DevParam, Virtio, VirtioDevice};
use alioth::virtio::pci::VirtioPciDevice;
use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{Pid, gettid};

use crate::balloon::{BalloonParam, Lock};
use crate::console::SocketConsole;

type KvmVm = <Kvm as Hypervisor>::Vm;

/// The only CPU.
const CPU: u16 = 0;
const SERIAL_PIN: u8 = 4;
/// How long the CPU may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The system call in which a CPU that is paused waits.
const FUTEX: &str = "202 ";

/// What is booted.
pub(crate) struct Spec {
    pub(crate) memory_bytes: u64,
    pub(crate) image: PathBuf,
    pub(crate) command_line: CString,
    /// The balloon's, if it has one.
    pub(crate) socket: Option<PathBuf>,
}

/// A virtual machine with one CPU.
pub(crate) struct Machine {
    board: Arc<Board<KvmVm>>,
    events: parking_lot::Mutex<Receiver<u16>>,
    cpu_thread: Pid,
    session: Lock,
}

impl Machine {
    /// Puts it together, halted.
    pub(crate) fn new(spec: Spec, serial_port: UnixStream) -> Result<Self> {
        let Spec { memory_bytes, image, command_line, socket } = spec;
        let hypervisor = Kvm::new(KvmConfig::default()).context("opening /dev/kvm")?;
        let memory = MemConfig {
            size: memory_bytes,
            backend: MemBackend::Memfd,
            shared: true,
            ..MemConfig::default()
        };
        let cpu = CpuConfig { count: 1, ..CpuConfig::default() };
        let board = Board::new(&hypervisor, BoardConfig { mem: memory, cpu, coco: None })?;
        let board = Arc::new(board);
        let (events, cpu_thread) = start_cpu(&board)?;
        board.arch_init()?;

        let interrupts = Arc::new(IoApic::new(board.vm.create_msi_sender()?));
        let console = SocketConsole(serial_port);
        let serial = Serial::new(PORT_COM1, interrupts, SERIAL_PIN, console)?;
        board.io_devs.write().push((PORT_COM1, Arc::new(serial)));
        let session = Lock::default();
        if let Some(socket) = socket {
            add_device(&board, "balloon", BalloonParam { socket, lock: session.clone() })?;
        }
        *board.payload.write() = Some(Payload {
            executable: Some(Executable::Pvh(image.into())),
            cmdline: Some(command_line),
            ..Payload::default()
        });
        Ok(Self { board, events: events.into(), cpu_thread, session })
    }

    /// Runs the guest until it ends.
    pub(crate) fn run(&self) -> Result<()> {
        self.board.boot()?;
        self.events.lock().recv().context("the CPU has gone")?;
        let cpu = self.board.vcpus.write().pop().context("no CPU")?;
        match cpu.join() {
            Ok(result) => Ok(result?),
            Err(_) => bail!("the CPU's thread has panicked"),
        }
    }

    /// Stops the CPU, and waits until it stands.
    ///
    /// alioth sends its thread one signal and does not wait. A signal that comes while the thread is outside of
    /// KVM, with an access to a device, is lost. And a CPU that stops after the machine was resumed pauses it
    /// again.
    pub(crate) fn pause(&self) -> Result<()> {
        self.board.pause()?;
        let deadline = Instant::now() + STOP_PATIENCE;
        // A CPU that waits for the session, which the first look holds, has gone on by the second.
        while !(self.stands()? && self.stands_still()?) {
            ensure!(Instant::now() < deadline, "the CPU has not stopped within {STOP_PATIENCE:?}");
            let cpus = self.board.vcpus.read();
            let cpu = cpus.first().context("no CPU")?;
            self.board.vm.stop_vcpu(self.board.encode_cpu_identity(CPU), cpu)?;
            drop(cpus);
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Goes on.
    pub(crate) fn resume(&self) -> Result<()> {
        Ok(self.board.resume()?)
    }

    fn stands_still(&self) -> Result<bool> {
        thread::sleep(LOOK_EVERY);
        self.stands()
    }

    /// Whether the CPU waits for the machine to go on: it waits for something, and not for the session.
    fn stands(&self) -> Result<bool> {
        let Some(_free) = self.session.try_lock() else { return Ok(false) };
        let path = format!("/proc/self/task/{}/syscall", self.cpu_thread);
        let call = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Ok(call.starts_with(FUTEX))
    }
}

/// Starts the CPU's thread, which waits for the machine to boot.
fn start_cpu(board: &Arc<Board<KvmVm>>) -> Result<(Receiver<u16>, Pid)> {
    let (events, inbox) = channel();
    let (sender, thread_id) = channel();
    let cpu = board.clone();
    let thread = thread::Builder::new().name(format!("cpu{CPU}")).spawn(move || {
        // The other end waits for it.
        let _ = sender.send(gettid());
        cpu.run_vcpu(CPU, events)
    });
    board.vcpus.write().push(thread.context("starting the CPU's thread")?);
    let thread_id = thread_id.recv().context("the CPU's thread has gone")?;
    inbox.recv().context("the CPU's thread has gone")?;
    Ok((inbox, thread_id))
}

/// As `alioth::vm::Machine::add_virtio_dev`.
fn add_device<D: Virtio>(
    board: &Board<KvmVm>,
    name: &str,
    param: impl DevParam<Device = D>,
) -> Result<()> {
    let bdf = board.pci_bus.reserve(None).context("no room on the PCI bus")?;
    let device = param.build(name)?;
    if let Some(callback) = device.mem_change_callback() {
        board.memory.register_change_callback(callback)?;
    }
    let ioeventfds = board.vm.create_ioeventfd_registry()?;
    let device = VirtioDevice::new(name, device, board.memory.ram_bus(), false)?;
    let device = VirtioPciDevice::new(device, board.vm.create_msi_sender()?, ioeventfds)?;
    device.config().get_header().set_bdf(bdf);
    board.pci_bus.add(bdf, Arc::new(device));
    Ok(())
}
