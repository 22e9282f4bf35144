// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel command line: `name=value` options, separated by blanks.
//!
//! | option | what | default |
//! |---|---|---|
//! | `tracker` | what remembers the pages to report, a name of [`TrackerKind`] | `section-bit` |
//! | `holding` | `isolate` or `pull` | `isolate` |
//! | `numbering` | of queues, `linux` or `specification` | `linux` |
//! | `indirect` | whether reports use indirect descriptors, `yes` or `no` | `yes` |
//! | `init` | whether the device is asked what is zero, and every page of that is checked, `yes` or `no` | `no` |
//! | `seed` | of all that is random | 1 |
//! | `stride` | words from one access of contents to the next | 1 |
//! | `sections` | the most sections of 128 MiB that the model has | all |
//! | `targets` | whether `serve` looks for a target or a round of hinting, `yes` or `no` | `yes` |
//! | `tsc-khz` | rate of the time stamp counter | measured by the PIT |
//! | `sabotage` | a fault that the guest must notice, a name of [`Sabotage`] | none |
//! | `do` | a list of steps separated by commas, see [`Step`] | `verify` |

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::str::FromStr;
use core::time::Duration;

use guest_driver::reporting::{Holding, TrackerKind};
use guest_driver::virtio::balloon::QueueNumbering;

const MIB: u64 = 1 << 20;

/// A fault on purpose, most of them once a [`Step::Verify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// `report-held`: a block in use is reported.
    ReportHeld,
    /// `skip-freed`: a free block is not reported.
    SkipFreed,
    /// `write-freed`: a word of a free page is written after its report.
    WriteFreed,
    /// `trust-all`: every report is taken for zero, whatever the device says. Not only in a verify.
    TrustAll,
}

/// What the guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// `verify`: fills all free memory, frees half of it, reports, and checks both halves.
    Verify,
    /// `churn:N`: takes all free memory, frees it and reports it, N times untouched and N times touched.
    Churn { rounds: u64 },
    /// `balloon:MIB`: inflates so much and deflates it.
    Balloon { bytes: u64 },
    /// `reset`: resets the device and attaches to it again.
    Reset,
    /// `grow:ADDRESS:MIB`: waits for memory at a hexadecimal address and takes it online.
    Grow { start: u64, bytes: u64 },
    /// `serve:SECONDS`: works as a guest's driver does, until the time is over or the host sends a byte on
    /// the serial port.
    Serve { limit: Duration },
}

/// All options.
pub(crate) struct Options {
    pub(crate) tracker: TrackerKind,
    pub(crate) holding: Holding,
    pub(crate) numbering: QueueNumbering,
    pub(crate) indirect: bool,
    pub(crate) init: bool,
    pub(crate) seed: u64,
    pub(crate) stride: usize,
    pub(crate) sections: usize,
    pub(crate) targets: bool,
    pub(crate) tsc_khz: Option<u64>,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) steps: Vec<Step>,
}

impl Options {
    /// Reads a command line.
    ///
    /// # Errors
    /// Names the first word that is not understood.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let mut options = Self {
            tracker: TrackerKind::SectionBit,
            holding: Holding::Isolate,
            numbering: QueueNumbering::Linux,
            indirect: true,
            init: false,
            seed: 1,
            stride: 1,
            sections: usize::MAX,
            targets: true,
            tsc_khz: None,
            sabotage: None,
            steps: [Step::Verify].into(),
        };
        for word in line.split_ascii_whitespace() {
            options.set(word).map_err(|why| format!("command line: {word}: {why}"))?;
        }
        Ok(options)
    }

    fn set(&mut self, word: &str) -> Result<(), String> {
        let (name, value) = word.split_once('=').ok_or("expected name=value")?;
        match name {
            "tracker" => self.tracker = value.parse().map_err(|_| choices(TrackerKind::NAMES))?,
            "holding" => self.holding = value.parse().map_err(|_| choices(Holding::NAMES))?,
            "numbering" => {
                self.numbering = match value {
                    "linux" => QueueNumbering::Linux,
                    "specification" => QueueNumbering::Specification,
                    _ => return Err(choices(&["linux", "specification"])),
                }
            }
            "indirect" => self.indirect = yes_or_no(value)?,
            "init" => self.init = yes_or_no(value)?,
            "seed" => self.seed = number(value)?,
            "stride" => self.stride = positive(value)?,
            "sections" => self.sections = positive(value)?,
            "targets" => self.targets = yes_or_no(value)?,
            "tsc-khz" => self.tsc_khz = Some(positive(value)?),
            "sabotage" => {
                self.sabotage = Some(match value {
                    "report-held" => Sabotage::ReportHeld,
                    "skip-freed" => Sabotage::SkipFreed,
                    "write-freed" => Sabotage::WriteFreed,
                    "trust-all" => Sabotage::TrustAll,
                    _ => return Err(choices(SABOTAGES)),
                });
            }
            "do" => self.steps = value.split(',').map(step).collect::<Result<_, _>>()?,
            _ => return Err("no such option".into()),
        }
        Ok(())
    }

    /// One past the last address of memory that is added later.
    pub(crate) fn grown_end(&self) -> u64 {
        let ends = self.steps.iter().map(|step| match *step {
            Step::Grow { start, bytes } => start + bytes,
            _ => 0,
        });
        ends.max().unwrap_or(0)
    }
}

fn step(text: &str) -> Result<Step, String> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    Ok(match (name, value) {
        ("verify", "") => Step::Verify,
        ("reset", "") => Step::Reset,
        ("churn", rounds) => Step::Churn { rounds: positive(rounds)? },
        ("balloon", mib) => Step::Balloon { bytes: mebibytes(mib)? },
        ("serve", seconds) => Step::Serve { limit: Duration::from_secs(positive(seconds)?) },
        ("grow", place) => {
            let (address, mib) = place.split_once(':').ok_or("expected grow:ADDRESS:MIB")?;
            let digits = address.trim_start_matches("0x");
            let start = u64::from_str_radix(digits, 16).map_err(|error| format!("{error}"))?;
            let bytes = mebibytes(mib)?;
            start.checked_add(bytes).filter(|end| *end <= 1 << 44).ok_or("too high")?;
            Step::Grow { start, bytes }
        }
        _ => return Err(format!("no such step: {text}")),
    })
}

const SABOTAGES: &[&str] = &["report-held", "skip-freed", "write-freed", "trust-all"];

fn yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(choices(&["yes", "no"])),
    }
}

fn mebibytes(text: &str) -> Result<u64, String> {
    positive::<u64>(text)?.checked_mul(MIB).ok_or_else(|| "too large".into())
}

fn positive<T: FromStr<Err: Display> + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    let value = number(text)?;
    if value < T::from(1) { Err("expected 1 or more".into()) } else { Ok(value) }
}

fn number<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{error}"))
}

fn choices(names: &[&str]) -> String {
    format!("expected one of {}", names.join(", "))
}
