// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A running Linux guest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_agent::Hello;
use serde_json::json;

use super::config::{GuestConfig, linux_arguments};
use super::files::{Files, read_lossy};
use super::{Accel, DiscardCount, QmpClient, Toolbox, trace};
use crate::fetch::guest_dir;
use crate::linux_guest::{AgentClient, BALLOON_DRIVER, initramfs, modules as own_modules, splats};
use crate::measure::host;
use crate::vmm::process::Process;

/// With a KVM that works, a guest answers within two seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// Time without an answer or a printed line after which an emulated guest is stuck.
const STALL: Duration = Duration::from_secs(30);

/// A line on the console, behind which all that was printed before it is there.
const MARK: &str = "guest-agent: looking for reports of faults";

/// How long the kernel may take to print what it has to say.
const PRINTING: Duration = Duration::from_secs(60);

/// Restarts of an emulated guest that got stuck.
const RESTARTS: u32 = 2;

/// A Linux guest. Dropping it kills QEMU and waits until it is gone.
pub struct LinuxGuest {
    // First, so that it is dropped first: what follows is of no use to a running QEMU.
    process: Process,
    agent: AgentClient,
    qmp: QmpClient,
    memory: Memory,
    hello: Hello,
    accel: Accel,
    has_balloon_module: bool,
    files: Files,
}

impl LinuxGuest {
    /// Boots a guest and returns when its agent answers. The balloon driver is not loaded yet.
    ///
    /// # Errors
    /// When QEMU ends or the agent does not answer in time; then with what QEMU said and the end
    /// of the serial console.
    pub fn boot(toolbox: &Toolbox, config: GuestConfig) -> Result<Self> {
        ensure!(
            config.memory_bytes.is_multiple_of(2 << 20) && config.memory_bytes > 0,
            "memory_bytes is {}: expected a multiple of 2 MiB",
            config.memory_bytes
        );
        let accel = match config.accel {
            Some(accel) => accel,
            None => Accel::choose(toolbox, || Self::try_kvm(toolbox))?,
        };
        // Seen on an overloaded host: the kernel hung right after it had started the second CPU, and
        // had complained before that it could not calibrate its delay loop.
        let mut restarts = if accel == Accel::Tcg { RESTARTS } else { 0 };
        loop {
            match Self::boot_once(toolbox, &config, accel) {
                Err(BootError::Stalled(error)) if restarts > 0 => {
                    let text = error.to_string();
                    let why = text.lines().next().unwrap_or_default();
                    eprintln!("guest: restarting: {why}");
                    restarts -= 1;
                }
                Err(BootError::Stalled(error) | BootError::Failed(error)) => return Err(error),
                Ok(guest) => return Ok(guest),
            }
        }
    }

    /// Boots a small guest with KVM.
    fn try_kvm(toolbox: &Toolbox) -> Result<()> {
        let config = GuestConfig {
            memory_bytes: 256 << 20,
            cpus: 1,
            accel: Some(Accel::Kvm),
            boot_timeout: PROBE_TIMEOUT,
            ..GuestConfig::default()
        };
        Self::boot(toolbox, config).map(drop)
    }

    fn boot_once(toolbox: &Toolbox, config: &GuestConfig, accel: Accel) -> Result<Self, BootError> {
        let files = Files::new()?;
        let module = toolbox.kernel.balloon_module.as_deref();
        let mut modules: Vec<(&str, &Path)> =
            module.map(|file| (BALLOON_DRIVER, file)).into_iter().collect();
        let named = config.modules.iter().map(|path| Ok((path, toolbox.kernel.module(path)?)));
        let named = named.collect::<Result<Vec<_>>>()?;
        for (path, file) in &named {
            modules.push((path.rsplit('/').next().unwrap_or(path), file));
        }
        let own = match config.own_modules {
            true => own_modules::build(&toolbox.kernel, &mut |_| {})?,
            false => BTreeMap::new(),
        };
        modules.extend(own.iter().map(|(&name, file)| (name, file.as_path())));
        let initramfs = initramfs::pack(&guest_dir(), &toolbox.agent, &modules)?;
        let started = start(toolbox, config, accel, &files, &initramfs)?;
        let hello = await_hello(&started.agent, &started.process, &files, config, accel)?;
        Ok(Self::of(started, toolbox, config, accel, files, hello)?)
    }

    /// Starts a QEMU to which `source` is migrated from `uri`. It runs when the guest has come.
    ///
    /// # Errors
    /// When QEMU ends or refuses the address, with what it said.
    pub fn incoming(
        toolbox: &Toolbox,
        mut config: GuestConfig,
        source: &Self,
        uri: &str,
    ) -> Result<Self> {
        let files = Files::new()?;
        config.qemu_args.extend(["-incoming", "defer"].map(str::to_owned));
        // Read again by nothing but a reboot.
        let initramfs = toolbox.initramfs()?;
        let started = start(toolbox, &config, source.accel, &files, &initramfs)?;
        let guest = Self::of(started, toolbox, &config, source.accel, files, source.hello.clone())?;
        guest.qmp.execute("migrate-incoming", json!({ "uri": uri }))?;
        Ok(guest)
    }

    fn of(
        Started { process, agent, qmp }: Started,
        toolbox: &Toolbox,
        config: &GuestConfig,
        accel: Accel,
        files: Files,
        hello: Hello,
    ) -> Result<Self> {
        let qmp = QmpClient::new(qmp).with_context(|| files.tails())?;
        let memory = open_guest_memory(process.pid(), config.node_bytes.len())?;
        let has_balloon_module = toolbox.kernel.balloon_module.is_some();
        Ok(Self { process, agent, qmp, memory, hello, accel, has_balloon_module, files })
    }

    /// Loads the balloon driver, with module parameters as for modprobe.
    ///
    /// # Errors
    /// When the guest refuses it, or when the driver is built into the kernel and parameters are
    /// given, for which it is too late then.
    pub fn load_balloon_driver(&self, params: &str) -> Result<()> {
        if self.has_balloon_module {
            return self.agent.load_module(BALLOON_DRIVER, params);
        }
        ensure!(
            params.is_empty(),
            "the balloon driver is built into this kernel: give {params:?} on its command line"
        );
        Ok(())
    }

    /// The program inside the guest.
    pub fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// QEMU's control connection.
    pub fn qmp(&self) -> &QmpClient {
        &self.qmp
    }

    /// How the guest introduced itself after booting.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// What runs it.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Bytes of guest memory that the host holds.
    ///
    /// # Errors
    /// When the file cannot be asked.
    pub fn resident_bytes(&self) -> Result<u64> {
        let files = [&self.memory.first].into_iter().chain(&self.memory.of_other_nodes);
        files.map(host::resident_bytes).sum()
    }

    /// The file behind the guest's memory, or that of its first node, of which a copy may outlive the
    /// guest.
    pub fn memory(&self) -> &File {
        &self.memory.first
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether QEMU runs.
    pub fn is_running(&self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits until QEMU has ended; false if it has not within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.process.wait(timeout).is_some()
    }

    /// How QEMU has ended; `None` if it has not within `timeout`.
    pub fn end_within(&self, timeout: Duration) -> Option<ExitStatus> {
        self.process.wait(timeout)
    }

    /// All that QEMU has printed. From a good run that is nothing.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn stderr(&self) -> Result<String> {
        read_lossy(&self.files.stderr())
    }

    /// All that the guest has printed on its serial console.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn serial(&self) -> Result<String> {
        read_lossy(&self.files.serial())
    }

    /// The lines with which the guest's kernel has reported faults of its own on the serial console.
    /// From a good run there are none.
    ///
    /// # Errors
    /// When the log cannot be read, or the console does not show a line that the agent adds: the kernel
    /// may print late, and what it said before is there then.
    pub fn splats(&self) -> Result<Vec<String>> {
        let printed = |serial: &str| serial.matches(MARK).count();
        let before = printed(&self.serial()?);
        // Without the end of a line the kernel waits for the rest of it.
        self.agent.write_file("/dev/kmsg", &format!("{MARK}\n"))?;
        host::wait_until(PRINTING, Duration::from_millis(10), || {
            let serial = self.serial().map_err(|error| format!("{error:#}"))?;
            let shown = printed(&serial) > before;
            let lines = || splats(&serial).into_iter().map(str::to_owned).collect();
            shown.then(lines).ok_or_else(|| format!("the console does not show {MARK:?}"))
        })
    }

    /// What QEMU's own balloon device has discarded since the boot; zero with another balloon.
    ///
    /// # Errors
    /// When the trace cannot be read.
    pub fn own_device_discards(&self) -> Result<DiscardCount> {
        let path = self.files.trace();
        // With another balloon nothing is traced.
        if !path.exists() {
            return Ok(DiscardCount::default());
        }
        Ok(trace::count(&read_lossy(&path)?))
    }

    /// Whether QEMU's own balloon device counts what it discards, as it does from the boot on. A line
    /// of trace for each range takes CPU time.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn count_own_discards(&self, on: bool) -> Result<()> {
        let set = json!({ "name": trace::EVENT_PATTERN, "enable": on });
        self.qmp.execute("trace-event-set-state", set).map(drop)
    }

    /// Powers the guest off and waits until QEMU is gone; returns what QEMU had printed.
    ///
    /// # Errors
    /// When QEMU did not end by itself, or not well; it is gone even then.
    pub fn quit(self) -> Result<String> {
        self.agent.power_off();
        let mut status = self.process.wait(Duration::from_secs(30));
        if status.is_none() {
            // The guest does not power off; QEMU may end.
            let _ = self.qmp.quit();
            status = self.process.wait(Duration::from_secs(10));
        }
        let Some(status) = status else {
            self.process.kill();
            bail!("QEMU did not end by itself and was killed\n{}", self.files.tails());
        };
        ensure!(status.success(), "QEMU ended with {status}\n{}", self.files.tails());
        self.stderr()
    }
}

/// A QEMU that was just started, and the connections to it.
struct Started {
    process: Process,
    agent: AgentClient,
    qmp: UnixStream,
}

fn start(
    toolbox: &Toolbox,
    config: &GuestConfig,
    accel: Accel,
    files: &Files,
    initramfs: &Path,
) -> Result<Started> {
    // Connected from the start: there is no socket file to wait for, and QEMU's end is seen
    // here as a hang-up.
    let (agent, agent_of_qemu) = UnixStream::pair().context("a socket pair")?;
    let (qmp, qmp_of_qemu) = UnixStream::pair().context("a socket pair")?;
    let fds = [agent_of_qemu, qmp_of_qemu].map(OwnedFd::from);

    let mut command = toolbox.qemu.command();
    command.args(accel.args());
    command.arg("-kernel").arg(&toolbox.kernel.image).arg("-initrd").arg(initramfs);
    command.args(linux_arguments(config, files, &fds)?);
    let stderr = files.stderr();
    let stderr = File::create(&stderr).with_context(|| format!("creating {}", stderr.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let process = Process::start(command, fds.into())?;
    Ok(Started { process, agent: AgentClient::new(agent)?, qmp })
}

/// Why a guest did not boot.
enum BootError {
    /// It got stuck: another attempt may well succeed.
    Stalled(anyhow::Error),
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for BootError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Waits for the agent's first answer for as long as the guest gets on.
fn await_hello(
    agent: &AgentClient,
    process: &Process,
    files: &Files,
    config: &GuestConfig,
    accel: Accel,
) -> Result<Hello, BootError> {
    let printed = || fs::metadata(files.serial()).map_or(0, |metadata| metadata.len());
    let start = Instant::now();
    loop {
        let before = printed();
        let left = config.boot_timeout.saturating_sub(start.elapsed());
        // An unanswered question does no harm: there will be an answer more than was waited for.
        let error = match agent.hello_within(left.min(STALL)) {
            Ok(hello) => return Ok(hello),
            Err(error) => error,
        };
        let why = |fate: &str| {
            let tails = files.tails();
            anyhow!("the guest did not boot with {accel}: {fate}\n{error:#}\n{tails}")
        };
        // The hang-up comes before the process is gone, which gives its memory back first.
        let patience = if agent.is_gone() { STALL } else { Duration::ZERO };
        if let Some(status) = process.wait(patience) {
            return Err(why(&format!("QEMU ended with {status}")).into());
        }
        if start.elapsed() >= config.boot_timeout {
            return Err(why(&format!("it is not up after {:?}", config.boot_timeout)).into());
        }
        if printed() == before {
            return Err(BootError::Stalled(why(&format!("it printed nothing for {STALL:?}"))));
        }
    }
}

/// The files behind the guest's memory.
struct Memory {
    first: File,
    of_other_nodes: Vec<File>,
}

/// Opens QEMU's memfds of the guest's memory: one for each NUMA node, in their order.
fn open_guest_memory(pid: u32, nodes: usize) -> Result<Memory> {
    let folder = format!("/proc/{pid}/fd");
    let mut found: Vec<(u32, File)> = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {folder}"))? {
        let path = entry.with_context(|| format!("listing {folder}"))?.path();
        // A descriptor that was closed meanwhile has no link.
        let Ok(target) = fs::read_link(&path) else { continue };
        if !target.to_string_lossy().starts_with("/memfd:memory-backend-memfd") {
            continue;
        }
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let number = number.with_context(|| format!("{} is no descriptor", path.display()))?;
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        found.push((number, file));
    }
    found.sort_by_key(|(number, _)| *number);
    // Those that the caller's own arguments add come behind.
    let mut files = found.into_iter().map(|(_, file)| file).take(nodes.max(1));
    let first = files.next();
    let first =
        first.with_context(|| format!("QEMU (process {pid}) holds no memfd of guest memory"))?;
    let of_other_nodes: Vec<File> = files.collect();
    let (files, expected) = (1 + of_other_nodes.len(), nodes.max(1));
    ensure!(files == expected, "QEMU holds {files} memfds of guest memory, expected {expected}");
    Ok(Memory { first, of_other_nodes })
}
