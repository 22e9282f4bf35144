// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM of the library alioth, which runs the bare guest on KVM: the program `vmm-integration/alioth`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::NamedTempFile;

use crate::bare_guest::{Console, Line, image};
use crate::fetch::{SetupEvent, build};
use crate::vmm::bare::{BareMachine, BareSpec, absent};
use crate::vmm::process::Process;
use crate::vmm::{GuestKind, Vmm, kvm, tsc};

/// The version that the program asks for.
const VERSION: &str = "alioth 0.12.0";
/// How long it may take to end once the guest has powered off.
const EXIT_PATIENCE: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// The guest that only shows whether KVM runs it at all.
const PROBE_BYTES: u64 = 256 << 20;
const PROBE_PATIENCE: Duration = Duration::from_secs(60);

/// alioth as a row of [`crate::vmm::ALL`].
pub struct Alioth;

impl Vmm for Alioth {
    fn name(&self) -> &'static str {
        "alioth"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Bare]
    }

    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        kvm::open()?;
        build::alioth(events)?;
        probe().context("/dev/kvm runs no bare guest")?;
        Ok(VERSION.to_owned())
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        if spec.hugetlb_page_bytes.is_some() {
            return absent("its memory files have no huge pages");
        }
        if spec.files > 1 {
            return absent("its memory is in one file, or in two of which the first has 2 GiB");
        }
        let socket = Some(spec.socket.as_path());
        Ok(Box::new(AliothGuest::boot(socket, spec.memory_bytes, &spec.command_line.join(" "))?))
    }
}

/// Whether `/dev/kvm` runs a bare guest. A VMM that does not build is no answer: the tests fail then.
///
/// # Errors
/// When it runs none.
pub fn kvm_runs_bare_guests() -> Result<()> {
    kvm::open()?;
    build::alioth(&mut |_| ()).map_or(Ok(()), |_| probe())
}

/// Boots a guest without a balloon, which says that it has none.
fn probe() -> Result<()> {
    let mut guest = AliothGuest::boot(None, PROBE_BYTES, "do=verify")?;
    let line = guest.console.wait_for("failed", PROBE_PATIENCE);
    let line = line.with_context(|| format!("alioth's messages: {:?}", guest.messages()))?;
    ensure!(line.text.contains("device"), "the guest failed: {}", line.text);
    Ok(())
}

/// A bare guest. Dropping it kills its VMM and waits until that is gone.
struct AliothGuest {
    // First, so that it is dropped first.
    process: Process,
    console: Console,
    control: UnixStream,
    stderr: NamedTempFile,
}

impl AliothGuest {
    fn boot(socket: Option<&Path>, memory_bytes: u64, command_line: &str) -> Result<Self> {
        let program = build::alioth(&mut |_| ())?;
        let (port, port_of_vmm) = UnixStream::pair().context("a socket pair")?;
        let (control, control_of_vmm) = UnixStream::pair().context("a socket pair")?;
        control.set_read_timeout(Some(COMMAND_PATIENCE)).context("a socket's timeout")?;
        let stderr = NamedTempFile::with_prefix("alioth-").context("a temp file")?;
        let mut command = Command::new(program);
        command
            .arg(socket.unwrap_or(Path::new("")))
            .arg(memory_bytes.to_string())
            .arg(image()?)
            // The machine has no PIT.
            .arg(format!("{command_line} {}", tsc::option()))
            .stdin(Stdio::from(OwnedFd::from(port_of_vmm)))
            .stdout(Stdio::from(OwnedFd::from(control_of_vmm)))
            .stderr(File::create(stderr.path()).context("opening a temp file")?);
        let process = Process::start(command, Vec::new())?;
        Ok(Self { process, console: Console::new(port)?, control, stderr })
    }

    fn command(&self, command: &str) -> Result<()> {
        let asked = || -> Result<String> {
            writeln!(&self.control, "{command}")?;
            let mut answer = String::new();
            BufReader::new(&self.control).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().with_context(|| format!("asking alioth to {command}"))?;
        ensure!(answer == "done\n", "alioth did not {command}: {answer:?}, {:?}", self.messages());
        Ok(())
    }

    fn messages(&self) -> String {
        read(&self.stderr)
    }
}

fn read(file: &NamedTempFile) -> String {
    let bytes = fs::read(file.path()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl BareMachine for AliothGuest {
    fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn vmm_pid(&self) -> u32 {
        self.process.pid()
    }

    fn pause(&self) -> Result<()> {
        self.command("pause")
    }

    fn resume(&self) -> Result<()> {
        self.command("resume")
    }

    fn finish(self: Box<Self>, patience: Duration) -> Result<Vec<Line>> {
        let Self { process, console, stderr, .. } = *self;
        let lines = console.wait_done(patience);
        let lines = lines.with_context(|| format!("alioth's messages: {:?}", read(&stderr)))?;
        let Some(status) = process.wait(EXIT_PATIENCE) else {
            bail!("alioth did not end after the guest had powered off");
        };
        let messages = read(&stderr);
        ensure!(status.success() && messages.is_empty(), "alioth ended with {status}: {messages}");
        Ok(lines)
    }
}
