// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Init of the test guest: mounts what a Linux user space needs, opens its virtio-serial port, or
//! the terminal named on the kernel's command line, and executes the host's commands until power-off.
//!
//! As process 1 it must never end: every error becomes an answer, every panic ends one command
//! only and shows on the serial console.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_agent::{
    Command, Failure, MAX_LINE_BYTES, Outcome, PORT_NAME, PORT_VARIABLE, Reply, Request, Response,
};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::faults::Files;
use crate::memory::Allocations;
use crate::placed::Placements;
use crate::runner::Races;
use crate::storm::Storms;
use crate::victims::Victims;

mod faults;
mod lock;
mod memory;
mod offlines;
mod placed;
mod process;
mod reports;
mod runner;
mod stats;
mod stop;
mod storm;
mod system;
mod victims;

/// How many commands may run at once. One thread each: the host is trusted but may be wrong.
const MAX_RUNNING: usize = 64;

fn main() {
    match process::role() {
        None => {}
        Some(Ok(())) => return,
        Some(Err(error)) => {
            eprintln!("guest-agent: {error:#}");
            std::process::exit(1);
        }
    }
    if std::process::id() != 1 {
        eprintln!("guest-agent is the init of the test guest and does nothing elsewhere");
        std::process::exit(2);
    }
    loop {
        let error = match serve() {
            Ok(()) => "the host closed the port".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        eprintln!("guest-agent: {error}; starting again");
        // Only reached when something is badly wrong: the pause keeps the console readable.
        thread::sleep(Duration::from_secs(1));
    }
}

/// What commands leave for later ones.
#[derive(Default)]
struct State {
    allocations: Allocations,
    races: Races,
    placements: Placements,
    victims: Victims,
    storms: Storms,
    files: Files,
}

/// Serves the port until it ends.
fn serve() -> Result<()> {
    mount_all()?;
    let port = open_port()?;
    let answers = Arc::new(Mutex::new(port.try_clone().context("copying the port's descriptor")?));
    let state = Arc::new(State::default());
    let running = Arc::new(AtomicUsize::new(0));
    let mut requests = BufReader::new(Port(port));
    eprintln!("guest-agent: serving {PORT_NAME}");

    loop {
        let request = match read_request(&mut requests)? {
            Input::End => return Ok(()),
            Input::Bad(message) => {
                answer(&answers, 0, Outcome::Error(Failure { message, errno: None }));
                continue;
            }
            Input::Request(request) => request,
        };
        if running.fetch_add(1, Ordering::Relaxed) >= MAX_RUNNING {
            running.fetch_sub(1, Ordering::Relaxed);
            let message = format!("more than {MAX_RUNNING} commands at once: wait for some to end");
            answer(&answers, request.id, Outcome::Error(Failure { message, errno: None }));
            continue;
        }
        let id = request.id;
        let worker = {
            let (answers, running) = (Arc::clone(&answers), Arc::clone(&running));
            let state = Arc::clone(&state);
            move || {
                let outcome = run(request.command, &state);
                // Before the answer: the host may send its next command the moment it has it.
                running.fetch_sub(1, Ordering::Relaxed);
                answer(&answers, request.id, outcome);
            }
        };
        if let Err(error) = thread::Builder::new().spawn(worker) {
            running.fetch_sub(1, Ordering::Relaxed);
            let error = anyhow::Error::new(error).context("starting a thread for the command");
            answer(&answers, id, failed(&error));
        }
    }
}

/// Mounts devtmpfs, proc and sysfs, unless they are there.
fn mount_all() -> Result<()> {
    for (kind, folder) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(folder).with_context(|| format!("creating {folder}"))?;
        match mount(Some(kind), folder, Some(kind), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(error).with_context(|| format!("mounting {folder}")),
        }
    }
    // Not every kernel has it, and few tests need it.
    for mounted in [reports::mount_tracefs(), system::mount_debugfs()] {
        if let Err(error) = mounted {
            eprintln!("guest-agent: {error:#}");
        }
    }
    Ok(())
}

/// Opens the device that the kernel's command line names, else the port that has the name.
fn open_port() -> Result<File> {
    // The kernel hands init what it does not know of its command line as variables.
    if let Some(device) = std::env::var_os(PORT_VARIABLE) {
        return open_terminal(Path::new(&device));
    }
    let class = "/sys/class/virtio-ports";
    // The host adds the port with a control message, which may still be on its way when the
    // kernel starts init; nothing but a netlink socket would tell of its arrival.
    for _ in 0..500 {
        for port in fs::read_dir(class).into_iter().flatten().flatten() {
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            if name.trim() == PORT_NAME {
                let device = Path::new("/dev").join(port.file_name());
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&device)
                    .with_context(|| format!("opening the port {}", device.display()));
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("no port named {PORT_NAME} in {class}: is virtio-console built into this kernel?");
}

/// Opens a terminal for bytes as they come.
fn open_terminal(device: &Path) -> Result<File> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(device)
        .with_context(|| format!("opening the terminal {}", device.display()))?;
    let mut settings = tcgetattr(&terminal).context("asking for the terminal's settings")?;
    cfmakeraw(&mut settings);
    tcsetattr(&terminal, SetArg::TCSANOW, &settings).context("making the terminal raw")?;
    Ok(terminal)
}

/// The port as an endless stream.
struct Port(File);

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.0.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            // The host end is not connected, or the kernel has not heard of it yet. To close the
            // port now would throw away what the host has sent, and poll does not wait in this
            // state but returns POLLHUP.
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What came in over the port.
enum Input {
    Request(Request),
    /// A line that is no request, and why.
    Bad(String),
    End,
}

/// Reads one line; one that is too long is skipped.
fn read_request(port: &mut impl BufRead) -> Result<Input> {
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_LINE_BYTES)?;
    port.by_ref().take(limit).read_until(b'\n', &mut line).context("reading a request")?;
    if line.is_empty() {
        return Ok(Input::End);
    }
    if line.last() != Some(&b'\n') && line.len() >= MAX_LINE_BYTES {
        port.skip_until(b'\n').context("skipping an overlong request")?;
        return Ok(Input::Bad(format!("a request is longer than {MAX_LINE_BYTES} bytes")));
    }
    Ok(match serde_json::from_slice(&line) {
        Ok(request) => Input::Request(request),
        Err(error) => Input::Bad(format!(
            "not a request ({error}): {}",
            String::from_utf8_lossy(&line).trim_end()
        )),
    })
}

/// Does a command. A panic in it becomes its answer; the text of it is on the console.
fn run(command: Command, state: &State) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| execute(command, state))) {
        Ok(Ok(reply)) => Outcome::Ok(reply),
        Ok(Err(error)) => failed(&error),
        Err(_) => Outcome::Error(Failure {
            message: "the agent panicked: see the serial console".to_owned(),
            errno: None,
        }),
    }
}

fn execute(command: Command, state: &State) -> Result<Reply> {
    let State { allocations, races, placements, storms, victims, files } = state;
    match command {
        Command::Hello => system::hello().map(Reply::Hello),
        Command::LoadModule { name, params } => {
            system::load_module(&name, &params).map(|()| Reply::Done)
        }
        Command::UnloadModule { name } => system::unload_module(&name).map(|()| Reply::Done),
        Command::Alloc { id, bytes, generation } => {
            allocations.alloc(id, bytes, generation).map(|()| Reply::Done)
        }
        Command::Rewrite { id, generation } => {
            allocations.rewrite(id, generation).map(|()| Reply::Done)
        }
        Command::Verify { id } => allocations.verify(id).map(Reply::Verified),
        Command::Free { id } => allocations.free(id).map(|()| Reply::Done),
        Command::UseMemory { bytes } => process::use_memory(bytes).map(Reply::ProcessEnd),
        Command::Fault { plan } => faults::run(plan, files).map(Reply::Faulted),
        Command::MemInfo => system::meminfo().map(Reply::MemInfo),
        Command::ReadFile { path } => system::read_file(&path).map(Reply::Text),
        Command::ReadThrough { path, bytes } => {
            system::read_through(&path, bytes).map(|()| Reply::Done)
        }
        Command::WriteFile { path, text } => system::write_file(&path, &text).map(|()| Reply::Done),
        Command::MemoryBlocks => system::memory_blocks().map(Reply::MemoryBlocks),
        Command::Tasks { state } => system::tasks(state).map(Reply::Tasks),
        Command::StartRace { plan } => races.start(plan).map(|()| Reply::Done),
        Command::Race { stop } => races.report(stop).map(Reply::Race),
        Command::StartPlacement { plan } => placements.start(plan).map(|()| Reply::Done),
        Command::Placement { stop } => placements.report(stop).map(Reply::Placement),
        Command::StartVictim { plan } => victims.start(plan).map(|()| Reply::Done),
        Command::Victim { release } => victims.report(release).map(Reply::Victim),
        Command::Storm { plan } => storms.run(&plan).map(Reply::Storm),
        Command::Balloon => system::balloon().map(Reply::Balloon),
        Command::PowerOff => system::power_off().map(|()| Reply::Done),
    }
}

/// Turns an error into an answer, with the name of the system's error, if one is behind it.
fn failed(error: &anyhow::Error) -> Outcome {
    Outcome::Error(Failure { message: format!("{error:#}"), errno: system::errno_name(error) })
}

/// Sends one answer. A failure is printed on the console.
fn answer(port: &Mutex<File>, id: u64, outcome: Outcome) {
    let sent = serde_json::to_vec(&Response { id, outcome }).map_err(anyhow::Error::from).and_then(
        |mut line| {
            line.push(b'\n');
            let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
            port.write_all(&line).context("writing to the port")
        },
    );
    if let Err(error) = sent {
        eprintln!("guest-agent: answer {id} is lost: {error:#}");
    }
}
