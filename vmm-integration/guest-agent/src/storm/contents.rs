// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process knows of the pages that it wrote to.
//!
//! Each process has a word of its own in every page. All write the page's number to one more. Punches
//! of a page are counted as they begin and as they end, so a read is judged by those that lie certainly
//! between the last write and the read, and those that may.

use std::sync::atomic::{Ordering, fence};

use guest_agent::hugetlb::Done;

use super::control::Words;
use super::mapped::Mapped;

/// The word that names the page.
const LABEL_WORD: usize = 0;
const LABEL: u64 = 0x7061_6765_0000_0000;
/// Words between those of two processes: each has a cache line of its own.
const STEP: usize = 8;
/// What is kept of what was wrong.
const MOST: usize = 4;

/// The last write to a page.
#[derive(Clone, Copy)]
struct Write {
    value: u64,
    /// Punches that had ended before it.
    ended_before: u64,
    /// Punches that had begun after it.
    begun_after: u64,
}

/// Of one process.
pub(super) struct Contents {
    process: usize,
    writes: Vec<Option<Write>>,
    generation: u64,
}

/// What a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    /// Zero, as it must be.
    Zero,
    /// The last write, as it must be.
    Kept,
    /// One of the two; both may be.
    Either,
    /// A write from before a punch.
    Stale,
    /// Zero without a punch.
    Lost,
    /// Another value.
    Foreign,
}

/// Judges a value that was read while `ended` punches had ended at its begin, and `begun` had begun at
/// its end.
fn judge(last: Option<Write>, value: u64, ended: u64, begun: u64) -> Shows {
    let Some(last) = last else {
        return if value == 0 { Shows::Zero } else { Shows::Foreign };
    };
    // Punches of a page do not overlap: the first that began after the write has ended.
    let certainly = ended > last.begun_after;
    let perhaps = begun > last.ended_before;
    match value {
        0 if certainly => Shows::Zero,
        0 if perhaps => Shows::Either,
        0 => Shows::Lost,
        value if value != last.value => Shows::Foreign,
        _ if certainly => Shows::Stale,
        _ if perhaps => Shows::Either,
        _ => Shows::Kept,
    }
}

impl Contents {
    /// Of a process with a number of its own.
    pub(super) fn new(process: usize, pages: usize) -> Self {
        Self { process, writes: vec![None; pages], generation: 0 }
    }

    fn word(process: usize) -> usize {
        (process + 1) * STEP
    }

    /// Reads a page and says in `done` what is wrong with it.
    pub(super) fn check(&self, page: usize, mapped: &Mapped, words: &Words, done: &mut Done) {
        let ended = words.ended(page);
        let value = mapped.read(page, Self::word(self.process));
        let label = mapped.read(page, LABEL_WORD);
        fence(Ordering::SeqCst);
        let begun = words.begun(page);
        done.checks += 1;
        let shows = judge(self.writes[page], value, ended, begun);
        match shows {
            Shows::Zero => done.zeros += 1,
            Shows::Kept => done.kept += 1,
            Shows::Either => {}
            Shows::Stale | Shows::Lost | Shows::Foreign => wrong(done, || {
                format!("page {page} of process {} is {shows:?}: {value:#x}", self.process)
            }),
        }
        if label != 0 && label != LABEL | page as u64 {
            wrong(done, || format!("page {page} has the label {label:#x}"));
        }
    }

    /// Writes to a page.
    pub(super) fn write(&mut self, page: usize, mapped: &Mapped, words: &Words) {
        self.generation += 1;
        let value = (self.process as u64) << 48 | (page as u64) << 32 | self.generation;
        let ended_before = words.ended(page);
        fence(Ordering::SeqCst);
        mapped.write(page, Self::word(self.process), value);
        mapped.write(page, LABEL_WORD, LABEL | page as u64);
        fence(Ordering::SeqCst);
        let begun_after = words.begun(page);
        self.writes[page] = Some(Write { value, ended_before, begun_after });
    }

    /// Writes where another process does.
    pub(super) fn write_elsewhere(&self, page: usize, mapped: &Mapped) {
        let other = if self.process == 0 { 1 } else { self.process - 1 };
        mapped.write((page + 1) % self.writes.len(), Self::word(other), u64::MAX);
    }
}

/// Counts what is wrong.
pub(super) fn wrong(done: &mut Done, what: impl FnOnce() -> String) {
    done.wrong_times += 1;
    if done.wrong.len() < MOST {
        done.wrong.push(what());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_judged_by_punches_since_the_write() {
        // Written while one punch had ended and none was in progress.
        let last = Some(Write { value: 7, ended_before: 1, begun_after: 1 });
        for (value, ended, begun, shows) in [
            (7, 1, 1, Shows::Kept),
            (0, 1, 1, Shows::Lost),
            (7, 1, 2, Shows::Either),
            (0, 1, 2, Shows::Either),
            (0, 2, 2, Shows::Zero),
            (7, 2, 2, Shows::Stale),
            (7, 2, 3, Shows::Stale),
            (8, 1, 2, Shows::Foreign),
        ] {
            assert_eq!(judge(last, value, ended, begun), shows, "{value} {ended} {begun}");
        }
        // Written during a punch, which has ended since.
        let during = Some(Write { value: 7, ended_before: 1, begun_after: 2 });
        assert_eq!(judge(during, 7, 2, 2), Shows::Either);
        assert_eq!(judge(during, 0, 2, 2), Shows::Either);
        assert_eq!(judge(during, 7, 3, 3), Shows::Stale);
        assert_eq!(judge(None, 0, 0, 0), Shows::Zero);
        assert_eq!(judge(None, 1, 0, 0), Shows::Foreign);
    }
}
