// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `overhead`: what reporting costs programs that do nothing but take pages: will-it-scale's page_fault1
//! and page_fault2, and two whose pages the kernel takes for them.
//!
//! Reporting off and on take turns in pairs, in one guest and in an order drawn from the seed, so that
//! what drifts hits both, and each pair gives a ratio of its own. Memory that was given back has to be
//! had from the host again, which is the larger part of the cost: of the guest's bookkeeping alone
//! `cargo xtask bench guest` tells.
//!
//! A fault of user space costs user-mode Linux several context switches of the host, so there
//! page_fault1 and page_fault2 measure user-mode Linux. What its kernel does runs at the processor's
//! speed: the other two programs are for it.

mod program;
mod turns;

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use vmm_integration::guest::Guest;
use vmm_integration::vmm::GuestSpec;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelGuest};

use super::daemon::CountedDaemon;
use super::pairs::Estimate;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{GuestKind, describe};
use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Real, Several, Whole};
use crate::store::{Findings, Place};
use program::{MAPPING_BYTES, Program};
use turns::{Pair, Side, compare};

/// See the module.
pub(super) struct Overhead;

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        guest: Vec<GuestKind>, Several::any(), GuestKind::ALL.to_vec(), GuestKind::ALL.to_vec(),
            "guests to measure. user-mode-linux is at the processor's speed where its kernel works, which \
             it does in populate and write";
        program: Vec<Program>, Several::any(), Program::ALL.to_vec(), Program::ALL.to_vec(),
            "page_fault1: anonymous memory in huge pages, as in the cover letters of free page reporting; \
             page_fault2: a private mapping of a file, in single pages; populate: page_fault1 with \
             MADV_POPULATE_WRITE instead of faults; write: write() to a file in tmpfs. The model, which is \
             its own kernel, has no populate and write";
        tasks: u32, Whole(1, 16), 1, 1,
            "programs side by side; with one for each of the host's CPUs the daemon shares theirs";
        memory: u64, Bytes(512 << 20, 64 << 30), 1 << 30, 4 << 30, "memory of the guest";
        turn: f64, Real(0.1, 600.0), 2.0, 2.0,
            "measured seconds of a turn; the guest reports every two";
        pairs: usize, Whole(1, 1000), 6, 17,
            "pairs of turns; an interval of 95 % needs at least six";
    }
}

/// A program in a guest.
pub(super) struct Faulting {
    program: Program,
    guest: GuestKind,
}

impl fmt::Display for Faulting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.program, self.guest)
    }
}

impl Case for Faulting {
    fn place(&self) -> Place {
        Place { table: self.guest.to_string(), column: self.program.to_string() }
    }
}

impl Experiment for Overhead {
    type Parameters = Settings;
    type Case = Faulting;

    fn name(&self) -> &'static str {
        "overhead"
    }

    fn about(&self) -> &'static str {
        "Measures how many pages programs take per second with reporting off and on, by faults as \
         will-it-scale's page_fault1 and page_fault2, or inside the kernel: the median of the ratios of \
         paired turns, with an interval."
    }

    fn repeats(&self, case: &Faulting) -> Repeats {
        case.guest.repeats()
    }

    fn cases(&self, settings: &Settings) -> Vec<Faulting> {
        let of = |&guest: &GuestKind| {
            let cases = settings.program.iter().map(move |&program| Faulting { program, guest });
            cases
                .filter(move |case| case.program.is_of_will_it_scale() || guest != GuestKind::Model)
        };
        settings.guest.iter().flat_map(of).collect()
    }

    fn run(&self, case: &Faulting, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let Settings { memory, tasks, .. } = *settings;
        let work = case.program.work();
        let needed = MAPPING_BYTES * u64::from(tasks) * work.copies();
        ensure!(
            needed <= memory / 2,
            "memory is too small for {tasks} tasks (got {memory} bytes, expected at least {}): set \
             memory higher or tasks lower",
            needed * 2
        );
        let mut findings = Findings::default();
        if let Err(why) = case.guest.available()? {
            findings.note(format!("Not measured: {why}."));
            return Ok(findings);
        }
        context.progress.say("booting");
        let device = CountedDaemon::for_guest(case.guest, context)?;
        let guest: Box<dyn Guest> = match case.guest {
            GuestKind::Model => {
                let memory = GuestMemory::flat(memory, usize::try_from(tasks)?);
                Box::new(ModelGuest::start(&device.socket(), ModelConfig::new(memory))?)
            }
            GuestKind::Qemu | GuestKind::UserModeLinux => {
                let spec = GuestSpec { memory_bytes: memory, socket: device.socket() };
                case.guest.vmm().boot(&spec)?
            }
        };
        findings.note(format!("{}. {}", describe(&*guest)?, case.program.about()));
        let reported = || Ok(device.discards()?.bytes);
        let side = Side { guest: &*guest, reported: &reported, work, tasks };
        let time = Duration::from_secs_f64(settings.turn);
        let pairs = compare(&side, time, settings.pairs, context)?;
        guest.shut_down()?;
        device.finish()?;
        tell(&pairs, &mut findings)?;
        Ok(findings)
    }
}

/// What a pair has shown.
type OfPair = fn(&Pair) -> f64;

#[allow(clippy::cast_precision_loss)] // figures for people
fn tell(pairs: &[Pair], findings: &mut Findings) -> Result<()> {
    let estimate = |of: &dyn Fn(&Pair) -> f64| Estimate::of(pairs.iter().map(of));
    let off = estimate(&|pair| pair.off.rate).context("no pair of turns")?;
    let on = estimate(&|pair| pair.on.rate).context("no pair of turns")?;
    findings.figure("off", off.median, "pages/s", "faulted in with reporting off, median");
    findings.figure("on", on.median, "pages/s", "faulted in with reporting on, median");
    let ratios: [(&str, OfPair, &str); 2] = [
        ("ratio", Pair::ratio, "pages a second with reporting on over off, of a pair"),
        ("cpu-ratio", Pair::cpu_ratio, "the same of pages a second of the programs' CPU time"),
    ];
    for (name, of, what) in ratios {
        let estimate = estimate(&of).context("no pair of turns")?;
        findings.figure(name, estimate.median, "", &format!("{what}: the median of the pairs"));
        let (low, high) = (format!("{name}-low"), format!("{name}-high"));
        findings.figure(&low, estimate.low, "", "lower end of the interval for that median");
        findings.figure(&high, estimate.high, "", "upper end of the interval for that median");
        findings.figure(
            "confidence",
            estimate.confidence * 100.0,
            "%",
            "of intervals like these hold the true median: order statistics, no assumption on how \
             ratios are spread",
        );
        findings.series(name, ("pair", ""), what, points(pairs, &of));
    }
    let gib = |of: &dyn Fn(&Pair) -> u64| {
        pairs.iter().map(of).sum::<u64>() as f64 / f64::from(1 << 30) / pairs.len() as f64
    };
    let reported = "reported in a turn, by the device's count, mean";
    findings.figure("reported-off", gib(&|pair| pair.off.reported_bytes), "GiB", reported);
    findings.figure("reported-on", gib(&|pair| pair.on.reported_bytes), "GiB", reported);
    let first = "reported since reporting was turned on and before the turn, mean";
    findings.figure("reported-first", gib(&|pair| pair.on.first_bytes), "GiB", first);
    findings.figure("pairs", pairs.len() as f64, "", "of turns");
    let reported = points(pairs, &|pair| pair.on.reported_bytes as f64 / f64::from(1 << 30));
    let what = "reported in the turn with reporting on, by the device's count";
    findings.series("reported-on", ("pair", "GiB"), what, reported);
    let rates = ("pair", "pages/s");
    let off = points(pairs, &|pair| pair.off.rate);
    findings.series("off", rates, "faulted in with reporting off", off);
    let on = points(pairs, &|pair| pair.on.rate);
    findings.series("on", rates, "faulted in with reporting on", on);
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // few
fn points(pairs: &[Pair], of: &dyn Fn(&Pair) -> f64) -> Vec<(f64, f64)> {
    pairs.iter().enumerate().map(|(nr, pair)| (nr as f64 + 1.0, of(pair))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Assignments, Length, Parameters as _};
    use crate::progress::Progress;
    use guest_agent::faulting::{FaultingPlan, Work};
    use std::fs::File;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use vmm_integration::guest::{Contents, Faulted};

    /// Reports only when it is on, or always.
    struct Fake {
        on: AtomicBool,
        obeys: bool,
        reported: AtomicU64,
    }

    impl Fake {
        fn has_no(&self) -> anyhow::Error {
            anyhow::anyhow!("this guest has programs and nothing else")
        }
    }

    impl Guest for Fake {
        fn describe(&self) -> String {
            String::new()
        }

        fn set_reporting(&self, on: bool) -> Result<()> {
            self.on.store(on, Relaxed);
            Ok(())
        }

        fn alloc(&self, _: u32, _: u64, _: u16) -> Result<()> {
            Err(self.has_no())
        }

        fn verify(&self, _: u32) -> Result<Contents> {
            Err(self.has_no())
        }

        fn free(&self, _: u32) -> Result<()> {
            Err(self.has_no())
        }

        fn fault(&self, plan: FaultingPlan) -> Result<Faulted> {
            let on = self.on.load(Relaxed);
            self.reported.fetch_add(u64::from(on || !self.obeys), Relaxed);
            let pages = if on { 900 } else { 1000 };
            let time = Duration::from_millis(plan.milliseconds);
            Ok(Faulted { pages, time, cpu: time / 2 })
        }

        fn used_bytes(&self) -> Result<u64> {
            Err(self.has_no())
        }

        fn resident_bytes(&self) -> Result<u64> {
            Err(self.has_no())
        }

        fn memory(&self) -> Result<File> {
            Err(self.has_no())
        }

        fn vmm_pid(&self) -> Option<u32> {
            None
        }

        fn shut_down(self: Box<Self>) -> Result<String> {
            Err(self.has_no())
        }
    }

    fn compared(obeys: bool) -> Result<Findings> {
        let set = Assignments::parse(&["pairs=7".to_owned()])?;
        let settings = Settings::read(Length::Quick, &set)?;
        let progress = Progress::new(1);
        let context = Context::new(1, &progress, None);
        let guest = Fake { on: AtomicBool::new(false), obeys, reported: AtomicU64::new(0) };
        let reported = || Ok(guest.reported.load(Relaxed));
        let side = Side { guest: &guest, reported: &reported, work: Work::File, tasks: 1 };
        let time = Duration::from_secs_f64(settings.turn);
        let pairs = compare(&side, time, settings.pairs, &context)?;
        let mut findings = Findings::default();
        tell(&pairs, &mut findings)?;
        Ok(findings)
    }

    #[test]
    fn each_side_keeps_its_own_turns_whatever_their_order() {
        let findings = compared(true).unwrap();
        let value = |name: &str| findings.figures[name].value;
        assert_eq!((value("off"), value("on"), value("pairs")), (500.0, 450.0, 7.0));
        for name in ["ratio", "ratio-low", "ratio-high", "cpu-ratio", "cpu-ratio-low"] {
            assert!((value(name) - 0.9).abs() < 1e-9, "{name}");
        }
        assert_eq!(value("reported-off"), 0.0);
        assert!(value("reported-on") > 0.0 && value("reported-first") > 0.0);
        assert_eq!(findings.series["ratio"].points.len(), 7);
    }

    #[test]
    fn guest_reporting_while_off_fails_the_case() {
        let error = format!("{:#}", compared(false).unwrap_err());
        assert!(error.contains("pair 0, reporting off: "), "{error}");
        assert!(error.contains("bytes were reported, expected none"), "{error}");
    }
}
