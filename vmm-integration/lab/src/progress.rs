// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bars on a terminal, lines elsewhere, and Ctrl-C.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The end of a run by Ctrl-C or SIGTERM. Finished cases are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

static STOP: AtomicBool = AtomicBool::new(false);

/// The exit status of a process that Ctrl-C ended: 128 and SIGINT.
pub const INTERRUPTED_STATUS: u8 = 130;

/// The time between two lines on a case, without a terminal.
const EVERY: Duration = Duration::from_secs(15);

/// Watches for Ctrl-C and SIGTERM: the first ends the run, a second the process. The process restores
/// the host's pools of huge pages before.
///
/// # Errors
/// If the process watches already, or may not.
pub fn watch_for_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            vmm_integration::measure::hugetlb::take_back_all();
            std::process::exit(INTERRUPTED_STATUS.into());
        }
        say("interrupted: ending after the current step; press Ctrl-C again to end at once");
    })
    .context("cannot watch for Ctrl-C")
}

/// Whether the run was interrupted.
pub fn interrupted() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Ends long work of an interrupted run.
///
/// # Errors
/// [`Interrupted`] if the run was interrupted.
pub fn check() -> Result<(), Interrupted> {
    if interrupted() { Err(Interrupted) } else { Ok(()) }
}

/// Waits for a time.
///
/// # Errors
/// [`Interrupted`], before that time.
pub fn wait_for(time: Instant) -> Result<(), Interrupted> {
    loop {
        check()?;
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::park_timeout(left.min(Duration::from_millis(100)));
    }
}

/// Writes a line to stderr. Ignores errors: a run goes on without a reader.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The progress of a run.
pub struct Progress {
    bars: MultiProgress,
    cases: ProgressBar,
    case: ProgressBar,
    /// Prints the progress of a case without a terminal, until the sender is dropped.
    lines: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// The progress of a run with this number of cases.
    pub fn new(cases: usize) -> Self {
        Self::drawn(cases, ProgressDrawTarget::stderr(), EVERY, say)
    }

    fn drawn(
        cases: usize,
        target: ProgressDrawTarget,
        every: Duration,
        say: impl Fn(&str) + Send + 'static,
    ) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let style = |template: &str| {
            ProgressStyle::with_template(template)
                .unwrap_or_else(|error| unreachable!("{template}: {error}"))
        };
        let all = bars.add(ProgressBar::new(cases as u64));
        all.set_style(style("[{bar:30}] {pos}/{len} cases, {elapsed}, about {eta} to go"));
        let case = bars.add(ProgressBar::no_length());
        case.set_style(style("{spinner} {prefix} {percent:>3} % {msg}"));
        let lines = bars.is_hidden().then(|| {
            let case = case.clone();
            let (end, ended) = channel();
            let speak = move || {
                while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    if !case.prefix().is_empty() {
                        say(&line(&case));
                    }
                }
            };
            (end, std::thread::spawn(speak))
        });
        Self { bars, cases: all, case, lines }
    }

    /// Begins a case.
    pub fn begin(&self, name: &str) {
        if self.lines.is_some() {
            let (nr, of) = (self.cases.position() + 1, self.cases.length().unwrap_or_default());
            say(&format!("{nr}/{of}: {name}"));
        }
        self.case.reset();
        self.case.set_prefix(name.to_owned());
        self.case.set_message("");
        self.case.set_length(1);
        if self.lines.is_none() {
            self.case.enable_steady_tick(Duration::from_millis(100));
        }
        self.cases.tick();
    }

    /// Shows that `done` of `of` is done of the case, in any unit.
    pub fn at(&self, done: u64, of: u64) {
        self.case.set_length(of.max(1));
        self.case.set_position(done);
    }

    /// Shows the current step of the case.
    pub fn say(&self, what: &str) {
        self.case.set_message(what.to_owned());
    }

    /// Ends a case, or counts one that was kept.
    pub fn end(&self) {
        self.cases.inc(1);
    }

    /// Prints a line above the bars.
    pub fn line(&self, text: &str) {
        self.bars.suspend(|| say(text));
    }
}

/// The progress of a case, as a line.
fn line(case: &ProgressBar) -> String {
    let (done, of) = (case.position(), case.length().unwrap_or_default().max(1));
    let percent = u128::from(done) * 100 / u128::from(of);
    let share = if done == 0 { String::new() } else { format!(" {percent} %,") };
    let what = Some(case.message()).filter(|what| !what.is_empty());
    let what = what.map(|what| format!(": {what}")).unwrap_or_default();
    format!("  {}:{share} {} s{what}", case.prefix(), case.elapsed().as_secs())
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.lines.take() {
            drop(end);
            // A panic there does not matter any more.
            let _ = thread.join();
        }
        self.case.finish_and_clear();
        self.cases.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_case_is_printed_without_a_terminal() {
        let (heard, said) = channel();
        let target = ProgressDrawTarget::hidden();
        let hear = move |text: &str| heard.send(text.to_owned()).unwrap();
        let progress = Progress::drawn(3, target, Duration::from_millis(5), hear);
        progress.begin("trackers section-bit-isolate-uniform");
        let first = said.recv().unwrap();
        assert_eq!(
            first, "  trackers section-bit-isolate-uniform: 0 s",
            "no progress is known yet"
        );
        progress.at(3, 4);
        progress.say("sweep");
        let expected = "  trackers section-bit-isolate-uniform: 75 %, 0 s: sweep";
        // An earlier line may come first.
        assert!(said.iter().take(3).any(|line| line == expected));
        drop(progress);
        assert!(said.iter().count() < 1000, "and it ends");
    }
}
