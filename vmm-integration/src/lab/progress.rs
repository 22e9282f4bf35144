//! Bars on a terminal, lines elsewhere, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A run was ended by Ctrl-C or SIGTERM. What had finished is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

static STOP: AtomicBool = AtomicBool::new(false);

/// What an exit by Ctrl-C is to shells: 128 and SIGINT.
pub const INTERRUPTED_STATUS: u8 = 130;

/// Watches for Ctrl-C from now on: the first asks the run to end, a second ends the process, with the
/// host's pools of huge pages put back.
///
/// # Errors
/// Where the process watches already, or may not.
pub fn watch_for_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            crate::hugetlb::take_back_all();
            std::process::exit(INTERRUPTED_STATUS.into());
        }
    })
    .context("cannot watch for Ctrl-C")
}

/// Whether the run is to end.
pub fn interrupted() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// For long work between two things that would be kept.
///
/// # Errors
/// [`Interrupted`] if the run is to end.
pub fn check() -> Result<(), Interrupted> {
    if interrupted() { Err(Interrupted) } else { Ok(()) }
}

/// How far a run is.
pub struct Progress {
    bars: MultiProgress,
    cases: ProgressBar,
    case: ProgressBar,
}

impl Progress {
    /// Of a run with so many cases.
    pub fn new(cases: usize) -> Self {
        let bars = MultiProgress::new();
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|error| unreachable!("{template}: {error}"))
        };
        let all = bars.add(ProgressBar::new(cases as u64));
        all.set_style(style("[{bar:30}] {pos}/{len} cases, {elapsed}, about {eta} to go"));
        let case = bars.add(ProgressBar::no_length());
        case.set_style(style("{spinner} {prefix} {percent:>3} % {msg}"));
        Self { bars, cases: all, case }
    }

    /// A case begins.
    pub fn begin(&self, name: &str) {
        if self.case.is_hidden() {
            eprintln!("{name}");
        }
        self.case.reset();
        self.case.set_prefix(name.to_owned());
        self.case.set_message("");
        self.case.set_length(1);
        self.case.enable_steady_tick(Duration::from_millis(100));
        self.cases.tick();
    }

    /// The case is this far: `done` of `of`, in any unit.
    pub fn at(&self, done: u64, of: u64) {
        self.case.set_length(of.max(1));
        self.case.set_position(done);
    }

    /// What it does now.
    pub fn say(&self, what: &str) {
        self.case.set_message(what.to_owned());
    }

    /// The case is done, or was done before.
    pub fn end(&self) {
        self.cases.inc(1);
    }

    /// Prints a line above the bars.
    pub fn line(&self, text: &str) {
        self.bars.suspend(|| eprintln!("{text}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.case.finish_and_clear();
        self.cases.finish_and_clear();
    }
}
