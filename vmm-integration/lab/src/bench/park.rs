// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `park`: what the host holds for guests that are stopped right after they have freed memory.

use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{GuestKind, describe};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Whole};
use crate::progress::{self, wait_for};
use crate::store::{Findings, Place};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest, Toolbox};

/// See the module.
pub(super) struct Park;

const FILLED: u32 = 1;
/// What Linux and its agent keep for themselves.
const OWN_BYTES: u64 = 448 << 20;
/// How long a park may take: its default deadline, and the time to let go.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(20);

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        guests: u64, Whole(1, 64), 2, 6, "guests at the same time";
        memory: u64, Bytes(512 << 20, 64 << 30), 1 << 30, 2 << 30,
            "memory of each guest, which fills and frees all but 448 MiB of it";
    }
}

/// Real guests.
pub(super) struct LinuxGuests;

impl fmt::Display for LinuxGuests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("qemu")
    }
}

impl Case for LinuxGuests {
    fn place(&self) -> Place {
        Place { table: "guests that are stopped".to_owned(), column: self.to_string() }
    }
}

impl Experiment for Park {
    type Parameters = Settings;
    type Case = LinuxGuests;

    fn name(&self) -> &'static str {
        "park"
    }

    fn about(&self) -> &'static str {
        "Measures what the host holds for guests that have freed nearly all their memory right before they \
         are stopped: with reporting alone at that moment, after ctl park, and with reporting alone after as \
         long."
    }

    fn repeats(&self, _: &LinuxGuests) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, _: &Settings) -> Vec<LinuxGuests> {
        vec![LinuxGuests]
    }

    fn run(&self, _: &LinuxGuests, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let mut findings = Findings::default();
        if let Err(why) = GuestKind::Qemu.available()? {
            findings.note(format!("Not measured: {why}."));
            return Ok(findings);
        }
        let toolbox = qemu::available()?;
        let mut vms = Vec::new();
        for number in 0..settings.guests {
            context.progress.at(number, settings.guests);
            context.progress.say("booting");
            progress::check()?;
            vms.push(Vm::boot(&toolbox, &context.daemon()?, settings.memory)?);
        }
        let first = vms.first().context("no guest")?;
        findings.note(format!("{}.", describe(&first.guest)?));

        let bytes = settings.memory - OWN_BYTES;
        context.progress.say("parking");
        let filled = fill_and_free(&vms, bytes, 1)?;
        let reporting = resident_bytes(&vms)?;
        let began = Instant::now();
        let ends = together(&vms, Vm::park)?;
        let took = began.elapsed();
        let parked = resident_bytes(&vms)?;
        together(&vms, Vm::unpark)?;

        context.progress.say("reporting alone");
        fill_and_free(&vms, bytes, 2)?;
        let began = Instant::now();
        wait_for(began + took)?;
        let later = resident_bytes(&vms)?;

        findings.count("guests", settings.guests, "", "at the same time");
        let mut held = |name: &str, bytes: u64, what: &str| {
            findings.count(name, bytes >> 20, "MiB", what);
        };
        held("filled", filled, "that the host held before the guests freed their memory");
        held("reporting", reporting, "held when it was freed, with reporting alone");
        held("parked", parked, "held when all guests were parked");
        held("reporting-later", later, "held with reporting alone, as long after it was freed");
        findings.figure("park-time", took.as_secs_f64(), "s", "until the last guest was parked");
        findings.note(format!("The squeezes ended by: {}.", ends.join(", ")));
        vms.into_iter().try_for_each(Vm::finish)?;
        Ok(findings)
    }
}

/// A guest with its daemon.
struct Vm {
    guest: LinuxGuest,
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Vm {
    fn boot(toolbox: &Toolbox, program: &Path, memory_bytes: u64) -> Result<Self> {
        let daemon = DaemonProcess::spawn_controlled(program, ["--statistics"])?;
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        let balloon = Balloon::VhostUser { socket: daemon.socket() };
        let config = GuestConfig { balloon, memory_bytes, cpus: 1, ..GuestConfig::default() };
        let guest = LinuxGuest::boot(toolbox, config)?;
        guest.load_balloon_driver("")?;
        Ok(Self { guest, daemon, control })
    }

    /// Returns why the guest was let go.
    fn park(&self) -> Result<String> {
        let answer = self.control.done("POST", "/v1/park", "")?;
        ensure!(answer["parked"] == true, "the guest is not parked: {answer}");
        Ok(answer["ended_by"].as_str().unwrap_or_default().to_owned())
    }

    /// Lets it have its memory again, and waits until the guest has it.
    fn unpark(&self) -> Result<()> {
        self.control.done("POST", "/v1/unpark", "")?;
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = self.control.get("/v1/status").map_err(|error| format!("{error:#}"))?;
            match status["actual_bytes"] == 0 {
                true => Ok(()),
                false => Err(format!("the balloon is not empty: {}", status["actual_bytes"])),
            }
        })
    }

    fn finish(mut self) -> Result<()> {
        self.guest.quit()?;
        self.daemon.terminate(PATIENCE)?;
        Ok(())
    }
}

/// What the host held before the memory was freed.
fn fill_and_free(vms: &[Vm], bytes: u64, generation: u16) -> Result<u64> {
    together(vms, |vm| vm.guest.agent().alloc(FILLED, bytes, generation))?;
    let filled = resident_bytes(vms)?;
    together(vms, |vm| vm.guest.agent().free(FILLED))?;
    Ok(filled)
}

fn resident_bytes(vms: &[Vm]) -> Result<u64> {
    vms.iter().map(|vm| vm.guest.resident_bytes()).sum()
}

/// Has all of them do something at the same time.
fn together<T: Send>(vms: &[Vm], act: impl Fn(&Vm) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = vms.iter().map(|vm| scope.spawn(|| act(vm))).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|ended| ended.map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}
