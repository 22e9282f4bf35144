// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! User-mode Linux of Debian: the guest's kernel is a process and itself the vhost-user frontend.
//!
//! Its guest runs the same agent as QEMU's, on a serial line.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::faulting::FaultingPlan;
use guest_agent::{Hello, PORT_VARIABLE};
use rustix::fs::StatVfsMountFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::fetch::apt::output;
use crate::fetch::{SetupEvent, Sysroot, build, guest_dir};
use crate::guest::{Contents, Faulted, Guest};
use crate::linux_guest::{AgentClient, BALLOON_DRIVER, fault, initramfs};
use crate::measure::host;
use crate::vmm::process::Process;
use crate::vmm::{GuestKind, GuestSpec, Vmm};

/// Where the guest's memory file is made: user-mode Linux maps it executable, and the daemon takes
/// files of tmpfs.
const MEMORY_FOLDER: &str = "/dev/shm";
/// Until it is up, on a busy machine; a second otherwise.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// After this it is asked again. What comes before the guest has opened its line is not noticed.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// Until it is off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(60);

/// The parts that boot a guest.
#[derive(Clone, Debug)]
pub struct UserModeLinuxParts {
    /// The kernel, a program.
    pub kernel: PathBuf,
    initramfs: PathBuf,
}

impl UserModeLinuxParts {
    /// Fetches, unpacks and builds what is missing, below [`guest_dir`].
    ///
    /// # Errors
    /// When the package cannot be had, or the guest's init does not build.
    pub fn ensure(events: &mut dyn FnMut(SetupEvent)) -> Result<Self> {
        let dir = guest_dir();
        let root = Sysroot::ensure_user_mode_linux(&dir, events)?;
        let releases = root.join("usr/lib/uml/modules");
        let mut found = fs::read_dir(&releases)
            .with_context(|| format!("listing {}", releases.display()))?
            .filter_map(|entry| {
                let module = entry.ok()?.path().join("kernel/drivers/virtio/virtio_balloon.ko");
                module.is_file().then_some(module)
            });
        let module = found.next().context("the package has no balloon driver")?;
        let agent = build::agent(&dir, events)?;
        let initramfs = initramfs::pack(&dir, &agent, &[(BALLOON_DRIVER, &module)])?;
        let initramfs = fs::canonicalize(initramfs).context("the path of the initramfs")?;
        Ok(Self { kernel: root.join("usr/bin/linux.uml"), initramfs })
    }
}

/// User-mode Linux as a row of [`crate::vmm::ALL`].
pub struct Uml;

impl Vmm for Uml {
    fn name(&self) -> &'static str {
        "user-mode-linux"
    }

    /// The guest's memory lies in /dev/shm, which other processes may fill.
    fn daemon_args(&self) -> &'static [&'static str] {
        &["--allow-limited-tmpfs"]
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Programs]
    }

    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        let parts = UserModeLinuxParts::ensure(events)?;
        let version = output(Command::new(&parts.kernel).arg("--version"));
        Ok(format!("Linux {}", version.context("asking user-mode Linux for its version")?.trim()))
    }

    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>> {
        let parts = parts_and_room(spec.memory_bytes)?;
        Ok(Box::new(UserModeLinux::boot(&parts, &spec.socket, spec.memory_bytes)?))
    }
}

/// A running guest, killed with all of its processes when this is dropped.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use vmm_integration::guest::Guest;
/// use vmm_integration::vmm::user_mode_linux::{UserModeLinux, UserModeLinuxParts};
///
/// let parts = UserModeLinuxParts::ensure(&mut |event| eprintln!("{event:?}"))?;
/// let socket = "/run/vhost-device-balloon.sock".as_ref();
/// let guest = UserModeLinux::boot(&parts, socket, 512 << 20)?;
/// guest.set_reporting(true)?;
/// println!("{}: {} bytes resident", guest.describe(), guest.resident_bytes()?);
/// println!("{}", guest.power_off()?);
/// # Ok(())
/// # }
/// ```
pub struct UserModeLinux {
    process: Group,
    agent: AgentClient,
    hello: Hello,
    memory: File,
    dir: TempDir,
}

impl UserModeLinux {
    /// Boots a guest whose balloon is the daemon that listens on `socket`. The balloon driver is not
    /// loaded yet.
    ///
    /// # Errors
    /// When it does not come up; the error holds its console.
    pub fn boot(parts: &UserModeLinuxParts, socket: &Path, memory_bytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("uml-")
            .tempdir_in(MEMORY_FOLDER)
            .with_context(|| format!("creating a folder in {MEMORY_FOLDER}"))?;
        let (ours, theirs) = UnixStream::pair().context("making the agent's line")?;
        let theirs = OwnedFd::from(theirs);
        let console = File::create(console_in(&dir)).context("creating the console's file")?;
        let mut command = Command::new(&parts.kernel);
        command
            .arg(format!("mem={}M", memory_bytes >> 20))
            .arg(argument("initrd=", &parts.initramfs))
            .args(["con=null", "con0=null,fd:1", "con1=null", "ssl=null", "panic=-1"])
            .arg(format!("ssl0=fd:{}", theirs.as_raw_fd()))
            .arg(format!("{PORT_VARIABLE}=/dev/ttyS0"))
            .arg(argument("virtio_uml.device=", socket_argument(socket)?))
            .arg(argument("uml_dir=", dir.path()))
            .env("TMPDIR", dir.path())
            .env("HOME", dir.path())
            .stdin(Stdio::null())
            .stdout(console.try_clone().context("copying the console's descriptor")?)
            .stderr(console)
            // Its helpers outlive a kernel that is killed, but not their group.
            .process_group(0);
        // On SIGTERM the kernel mostly ends its helpers; after SIGKILL they would all stay.
        let process = Group(Process::start_mortal(command, vec![theirs], Signal::TERM)?);
        let agent = AgentClient::new(ours)?;
        let hello = await_agent(&agent, &process.0);
        let hello = hello
            .with_context(|| format!("user-mode Linux did not boot:\n{}", console_of(&dir)))?;
        let memory = open_memory(process.0.pid(), memory_bytes)?;
        Ok(Self { process, agent, hello, memory, dir })
    }

    /// The agent inside the guest.
    pub fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// The kernel's messages so far.
    pub fn console(&self) -> String {
        console_of(&self.dir)
    }

    /// Powers the guest off and waits for its end; returns the kernel's messages.
    ///
    /// # Errors
    /// When it does not end by itself, or not well.
    pub fn power_off(self) -> Result<String> {
        self.agent.power_off();
        match self.process.0.wait(POWER_OFF_TIMEOUT) {
            Some(status) if status.success() => Ok(self.console()),
            Some(status) => bail!("user-mode Linux ended with {status}:\n{}", self.console()),
            None => bail!(
                "user-mode Linux still runs {POWER_OFF_TIMEOUT:?} after the power-off:\n{}",
                self.console()
            ),
        }
    }
}

impl Guest for UserModeLinux {
    fn describe(&self) -> String {
        format!("User-mode Linux {}", self.hello.kernel_release)
    }

    fn set_reporting(&self, on: bool) -> Result<()> {
        self.agent.unload_balloon_driver()?;
        if !on {
            return Ok(());
        }
        let loaded = self.agent.load_module(BALLOON_DRIVER, "");
        loaded.with_context(|| format!("its console:\n{}", self.console()))
    }

    fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()> {
        self.agent.alloc(id, bytes, generation)
    }

    fn verify(&self, id: u32) -> Result<Contents> {
        self.agent.verify(id).map(Contents::from)
    }

    fn free(&self, id: u32) -> Result<()> {
        self.agent.free(id)
    }

    fn fault(&self, plan: FaultingPlan) -> Result<Faulted> {
        fault(&self.agent, plan, || host::group_cpu_time(self.process.0.pid()))
    }

    fn used_bytes(&self) -> Result<u64> {
        Ok(self.agent.meminfo()?.used_bytes())
    }

    fn resident_bytes(&self) -> Result<u64> {
        host::resident_bytes(&self.memory)
    }

    fn memory(&self) -> Result<File> {
        self.memory.try_clone().context("copying a descriptor")
    }

    fn vmm_pid(&self) -> Option<u32> {
        Some(self.process.0.pid())
    }

    fn agent(&self) -> Option<&AgentClient> {
        Some(&self.agent)
    }

    fn shut_down(self: Box<Self>) -> Result<String> {
        self.power_off()
    }
}

/// A process that is killed with its group when this is dropped.
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        // Fails when none of its processes is left.
        if let Some(group) = i32::try_from(self.0.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Boots a guest with reporting on, and fetches what it needs.
///
/// # Errors
/// When this machine lacks the means, or the guest does not boot.
pub fn boot_reporting(socket: &Path, memory_bytes: u64) -> Result<UserModeLinux> {
    let guest = UserModeLinux::boot(&parts_and_room(memory_bytes)?, socket, memory_bytes)?;
    guest.set_reporting(true)?;
    Ok(guest)
}

fn parts_and_room(memory_bytes: u64) -> Result<UserModeLinuxParts> {
    let space = rustix::fs::statvfs(MEMORY_FOLDER)
        .with_context(|| format!("asking for the space of {MEMORY_FOLDER}"))?;
    let noexec = space.f_flag.contains(StatVfsMountFlags::NOEXEC);
    ensure!(!noexec, "{MEMORY_FOLDER} is mounted noexec, and the kernel runs from its memory");
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // Without room the kernel would die of SIGBUS.
    ensure!(free >= memory_bytes, "{MEMORY_FOLDER} has {free} bytes free, not {memory_bytes}");
    UserModeLinuxParts::ensure(&mut |event| {
        if let SetupEvent::Step(text) | SetupEvent::Warning(text) = event {
            eprintln!("guest: {text}");
        }
    })
}

/// Asks until there is an answer.
fn await_agent(agent: &AgentClient, process: &Process) -> Result<Hello> {
    let start = Instant::now();
    loop {
        let error = match agent.hello_within(ASK_AGAIN) {
            Ok(hello) => return Ok(hello),
            Err(error) => error,
        };
        if let Some(status) = process.ended() {
            bail!("it ended with {status}");
        }
        if start.elapsed() >= BOOT_TIMEOUT {
            return Err(error).context(format!("it is not up after {BOOT_TIMEOUT:?}"));
        }
    }
}

/// The file of the guest's memory, which has no name and is the only one of its size.
fn open_memory(pid: u32, memory_bytes: u64) -> Result<File> {
    let folder = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {folder}"))? {
        let path = entry.with_context(|| format!("listing {folder}"))?.path();
        // A descriptor may be closed meanwhile.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_file() && metadata.len() >= memory_bytes {
            return File::open(&path).with_context(|| format!("opening {}", path.display()));
        }
    }
    bail!("user-mode Linux (process {pid}) has no file of guest memory");
}

fn argument(name: &str, value: impl AsRef<Path>) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(value.as_ref());
    argument
}

/// The socket's path and the device's number, between which there is a colon.
fn socket_argument(socket: &Path) -> Result<PathBuf> {
    let text = socket.to_str().context("the socket's path is not UTF-8")?;
    ensure!(!text.contains([':', ' ']), "{text} cannot be given to user-mode Linux");
    Ok(format!("{text}:5").into())
}

fn console_in(dir: &TempDir) -> PathBuf {
    dir.path().join("console")
}

fn console_of(dir: &TempDir) -> String {
    let bytes = fs::read(console_in(dir)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
