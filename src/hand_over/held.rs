// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What one daemon has in the store, and what it found there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use log::warn;

use super::effect::{counts, in_effect};
use super::error::HandOverError;
use super::in_turn::InTurn;
use super::journal::{Entry, Journal};
use super::record::Record;
use super::snapshot::{Left, Snapshot, decode, encode};
use super::store::Store;
use crate::lock::MutexGuard;
use crate::logging::report;
use rustix::pipe::{PipeFlags, pipe_with};

const RECORD: &str = "record";
const CONNECTION: &str = "connection";
/// Messages after which the journal is replaced by one of those that count; twice as many as count if
/// these are more.
const MOST_MESSAGES: usize = 128;

/// What was said on a connection before this daemon had it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What still counts.
    pub settings: Vec<Entry>,
    /// The message that was being answered.
    pub asked: Option<Entry>,
}

/// The daemon before this one had these.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// The device.
    pub snapshot: Snapshot,
    /// Its frontend, if there was one.
    pub connection: Option<(UnixStream, History)>,
}

/// See the module. Its methods say what goes wrong in the log: the present daemon serves on.
#[derive(Debug)]
pub(crate) struct Held {
    store: Store,
    record: Record,
    inner: InTurn<Inner>,
    leaving: AtomicBool,
    finished: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    left: Option<Left>,
    journal: Option<Journal>,
    /// Of the journal, or of the one before.
    number: u64,
    messages: usize,
    most_messages: usize,
}

/// The names of a journal's ends.
fn ends(number: u64) -> [String; 2] {
    ["in", "out"].map(|end| format!("journal-{number}-{end}"))
}

impl Held {
    /// Takes what the daemon before this one has left out of `inherited`, if there was one.
    ///
    /// # Errors
    /// Why this daemon cannot go on from it.
    pub(crate) fn open(
        store: Store,
        inherited: &mut BTreeMap<String, OwnedFd>,
    ) -> Result<(Self, Option<Resumed>), HandOverError> {
        let cannot = |what| move |error| HandOverError::Io(what, error);
        let Some(record) = inherited.remove(RECORD) else {
            let record = Record::new().map_err(cannot("make room for"))?;
            let held = Self::of(store, record, Inner::default());
            held.store.put(RECORD, held.record.as_fd()).map_err(cannot("keep"))?;
            return Ok((held, None));
        };
        let record = Record::from(File::from(record));
        let connection = inherited.remove(CONNECTION);
        let Some(text) = record.read()? else {
            // It ended before it served anything.
            return Ok((Self::of(store, record, Inner::default()), None));
        };
        let left = decode(&text)?;
        let mut inner = Inner { left: Some(left.clone()), ..Inner::default() };
        let mut history = History::default();
        if let (Some(number), Some(_)) = (left.journal, &connection) {
            let [write, read] = ends(number).map(|name| inherited.remove(&name));
            let (Some(write), Some(read)) = (write, read) else {
                return Err(HandOverError::Missing("the journal"));
            };
            let journal = Journal::of(write, read);
            history = said(&journal, &record)?;
            inner.number = number;
            inner.journal = Some(journal);
        }
        // What a daemon left that was killed while it wrote another journal, or ended a session.
        inherited.retain(|name, _| {
            let stale = name.starts_with("journal-");
            if stale {
                told(store.remove(name));
            }
            !stale
        });
        let connection =
            connection.filter(|_| left.journal.is_some()).map(|fd| (UnixStream::from(fd), history));
        let held = Self::of(store, record, inner);
        Ok((held, Some(Resumed { snapshot: left.snapshot, connection })))
    }

    fn of(store: Store, record: Record, inner: Inner) -> Self {
        Self {
            store,
            record,
            inner: InTurn::new(inner),
            leaving: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    /// Keeps a socket that is listened on.
    pub(crate) fn keep_listener(&self, name: &str, listener: impl AsFd) {
        told(self.store.put(name, listener.as_fd()));
    }

    /// The device has changed, perhaps.
    ///
    /// `snapshot` is asked for in turn, so that an older one never replaces a later one.
    pub(crate) fn keep(&self, snapshot: impl FnOnce() -> Snapshot) {
        self.inner.follow(snapshot, |inner, snapshot| {
            let journal = inner.left.as_ref().and_then(|left| left.journal);
            self.write(inner, Left { journal, snapshot });
        });
    }

    /// A frontend is served from now on. The first [`Held::keep`] comes before.
    pub(crate) fn begin(&self, connection: impl AsFd) {
        let mut inner = self.lock();
        let begun = self.replace_journal(&mut inner, &[]);
        told(begun.and_then(|()| self.store.put(CONNECTION, connection.as_fd())));
    }

    /// The frontend of the daemon before this one is served again, and has been told so far what
    /// counts. What is said from now on is written down behind that.
    pub(crate) fn resumed(&self) {
        let mut inner = self.lock();
        let settings = match &inner.journal {
            Some(journal) => said(journal, &self.record).map(|history| history.settings),
            None => Ok(Vec::new()),
        };
        match settings {
            Ok(settings) => told(self.replace_journal(&mut inner, &settings)),
            Err(error) => report("cannot keep what the next daemon needs", &error),
        }
        told(self.store.ready());
    }

    /// Who starts the next daemon is to start the program that is at this one's path now.
    ///
    /// # Errors
    /// What the kernel says if nobody is there.
    pub(crate) fn upgrade(&self) -> io::Result<()> {
        self.store.upgrade()
    }

    /// The frontend has sent a message, which nothing has answered yet.
    pub(crate) fn received(&self, bytes: &[u8], fds: &[OwnedFd]) {
        told(self.record.set_message(bytes));
        let request = bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        if !counts(request) {
            return;
        }
        let mut inner = self.lock();
        if inner.messages >= inner.most_messages {
            told(self.rewrite(&mut inner));
        }
        inner.messages += 1;
        let Some(journal) = &inner.journal else { return };
        if let Err(error) = journal.append(bytes, fds) {
            report("this VM will not outlive the daemon: its settings cannot be kept", &error);
            self.forget(&mut inner);
        }
    }

    /// What the frontend has sent last is being answered, and not by the next daemon.
    pub(crate) fn answered(&self) {
        told(self.record.clear_message());
    }

    /// The frontend has gone. Not where this daemon ends and the next goes on.
    pub(crate) fn end(&self) {
        if !self.is_leaving() {
            let mut inner = self.lock();
            self.forget(&mut inner);
            told(self.record.clear_message());
        }
    }

    /// This daemon ends and the next goes on, if there is still someone who starts it; says whether.
    pub(crate) fn leave(&self) -> bool {
        let leaves = self.store.leave().is_ok();
        self.leaving.store(leaves, Ordering::SeqCst);
        leaves
    }

    /// This daemon ends for good after all.
    pub(crate) fn stay(&self) {
        self.leaving.store(false, Ordering::SeqCst);
    }

    /// This daemon has ended for good: nothing of it stays.
    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::SeqCst);
    }

    /// Whether this daemon has ended for good.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }

    /// Whether this daemon ends and the next goes on.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Has the keeper ask the program that is at this one's path whether it could go on from the
    /// record. Its answer comes from what this returns: `yes`, or why not; nothing where no keeper is.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn ask_program(&self) -> io::Result<File> {
        let (answer, to) = pipe_with(PipeFlags::CLOEXEC)?;
        self.store.check(self.record.as_fd(), to.as_fd())?;
        Ok(answer.into())
    }

    fn forget(&self, inner: &mut Inner) {
        told(self.store.remove(CONNECTION));
        if inner.journal.take().is_some() {
            if let Some(left) = inner.left.clone() {
                self.write(inner, Left { journal: None, ..left });
            }
            for name in ends(inner.number) {
                told(self.store.remove(&name));
            }
        }
    }

    /// Has a journal with only what counts.
    fn rewrite(&self, inner: &mut Inner) -> io::Result<()> {
        let Some(journal) = &inner.journal else { return Ok(()) };
        let entries = in_effect(journal.read()?);
        self.replace_journal(inner, &entries)
    }

    /// Has another journal, which counts once it is whole.
    fn replace_journal(&self, inner: &mut Inner, entries: &[Entry]) -> io::Result<()> {
        let journal = Journal::new()?;
        for entry in entries {
            journal.append(&entry.bytes, &entry.fds)?;
        }
        let before = inner.journal.is_some().then_some(inner.number);
        let number = inner.number + 1;
        for (name, end) in ends(number).iter().zip(journal.ends()) {
            self.store.put(name, end)?;
        }
        (inner.number, inner.messages) = (number, entries.len());
        inner.most_messages = MOST_MESSAGES.max(2 * entries.len());
        inner.journal = Some(journal);
        if let Some(left) = inner.left.clone() {
            self.write(inner, Left { journal: Some(number), ..left });
        }
        for name in before.iter().flat_map(|number| ends(*number)) {
            self.store.remove(&name)?;
        }
        Ok(())
    }

    fn write(&self, inner: &mut Inner, left: Left) {
        if inner.left.as_ref() == Some(&left) {
            return;
        }
        match encode(&left).map(|text| self.record.write(&text)) {
            Ok(written) => told(written),
            Err(error) => report("cannot keep the device's state for the next daemon", &error),
        }
        inner.left = Some(left);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

/// What was said before, and the message that its frontend still waits for an answer to. One that is
/// kept in the journal is the last there: it is answered again, and is no setting yet. One that is
/// kept there and has no answer is a setting like others.
fn said(journal: &Journal, record: &Record) -> Result<History, HandOverError> {
    let mut entries = journal.read().map_err(|error| HandOverError::Io("read", error))?;
    let asked = record.message()?.map(|bytes| Entry { bytes, fds: Vec::new() });
    let asked = match asked {
        Some(asked) if asked.counts() => {
            let waits = asked.is_waited_for();
            let last = entries.pop_if(|last| waits && last.bytes == asked.bytes);
            last.or_else(|| waits.then_some(asked))
        }
        other => other,
    };
    Ok(History { settings: in_effect(entries), asked })
}

fn told(done: io::Result<()>) {
    if let Err(error) = done {
        warn!("cannot keep what the next daemon needs: {error}");
    }
}
