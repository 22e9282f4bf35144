// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bars on a terminal, lines elsewhere, and Ctrl-C.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A run was ended by Ctrl-C or SIGTERM. What had finished is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

static STOP: AtomicBool = AtomicBool::new(false);

/// What an exit by Ctrl-C is to shells: 128 and SIGINT.
pub const INTERRUPTED_STATUS: u8 = 130;

/// How often a case that takes long is heard of where no bar can be drawn.
const EVERY: Duration = Duration::from_secs(15);

/// Watches for Ctrl-C from now on: the first asks the run to end, a second ends the process, with the
/// host's pools of huge pages put back.
///
/// # Errors
/// Where the process watches already, or may not.
pub fn watch_for_interrupts() -> Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            vmm_integration::measure::hugetlb::take_back_all();
            std::process::exit(INTERRUPTED_STATUS.into());
        }
        say("ending after what is being done; again: ends at once");
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

/// Writes a line to stderr. A run goes on if nobody reads it any more.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// How far a run is.
pub struct Progress {
    bars: MultiProgress,
    cases: ProgressBar,
    case: ProgressBar,
    /// Says how far a case is, where there are no bars, until the sender is gone.
    lines: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Of a run with so many cases.
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

    /// A case begins.
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
        self.bars.suspend(|| say(text));
    }
}

/// How far a case is, as a line.
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
            // It has nothing to say that would matter now.
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
    fn without_a_terminal_a_long_case_is_heard_of_now_and_then() {
        let (heard, said) = channel();
        let target = ProgressDrawTarget::hidden();
        let hear = move |text: &str| heard.send(text.to_owned()).unwrap();
        let progress = Progress::drawn(3, target, Duration::from_millis(5), hear);
        progress.begin("trackers section-bit-isolate-uniform");
        let first = said.recv().unwrap();
        assert_eq!(
            first, "  trackers section-bit-isolate-uniform: 0 s",
            "nobody knows how far it is"
        );
        progress.at(3, 4);
        progress.say("sweep");
        let expected = "  trackers section-bit-isolate-uniform: 75 %, 0 s: sweep";
        // The line before may have been under way.
        assert!(said.iter().take(3).any(|line| line == expected));
        drop(progress);
        assert!(said.iter().count() < 1000, "and it ends");
    }
}
