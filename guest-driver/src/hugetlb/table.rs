// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that page tables are made of. A page keeps its place when it is freed and used as something
//! else; a generation tells its lives apart.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::broken::{Broken, Rule};
use crate::sync::Plain;
use crate::waits::{Held, Party, WatchedMutex};

/// What an entry of a page table maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// A folio of the file.
    Folio(usize),
    /// A private page of this address space.
    Private(usize),
}

/// A page table as it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableRef {
    pub(super) frame: usize,
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Free,
    Table,
    /// Anything but a page table.
    Other,
}

#[derive(Debug)]
struct Frame {
    state: Plain<State>,
    /// The lock that is embedded in the page (split page table lock).
    lock: WatchedMutex,
}

/// The state of a page table.
#[derive(Debug)]
pub(super) struct State {
    generation: u64,
    kind: Kind,
    pub(super) entries: Vec<Option<Page>>,
    /// Address spaces beside the first that have it installed (`pt_share_count`).
    pub(super) shares: usize,
    /// References to the page, speculative ones included.
    pub(super) references: usize,
}

#[derive(Debug)]
pub(super) struct Tables(Vec<Frame>);

impl Tables {
    /// So many pages, each with place for so many entries.
    pub(super) fn new(pages: usize, entries: usize, lock: impl Fn(String) -> WatchedMutex) -> Self {
        let frame = |page| Frame {
            state: Plain::new(State {
                generation: 0,
                kind: Kind::Free,
                entries: vec![None; entries],
                shares: 0,
                references: 0,
            }),
            lock: lock(format!("the lock of page table {page}")),
        };
        Self((0..pages).map(frame).collect())
    }

    /// A free page as an empty page table.
    pub(super) fn alloc(&self) -> Option<TableRef> {
        let frame = self.take(Kind::Table)?;
        let generation = self.0[frame].state.lock().generation;
        Some(TableRef { frame, generation })
    }

    /// A free page as something else.
    pub(super) fn alloc_other(&self) -> Option<usize> {
        self.take(Kind::Other)
    }

    fn take(&self, kind: Kind) -> Option<usize> {
        self.0.iter().position(|frame| {
            let mut state = frame.state.lock();
            let free = state.kind == Kind::Free;
            if free {
                (state.kind, state.shares, state.references) = (kind, 0, 1);
                state.entries.fill(None);
            }
            free
        })
    }

    /// Reads or changes `table`; none if it is no longer that page table.
    pub(super) fn with<R>(&self, table: TableRef, body: impl FnOnce(&mut State) -> R) -> Option<R> {
        let mut state = self.0[table.frame].state.lock();
        let alive = state.kind == Kind::Table && state.generation == table.generation;
        alive.then(|| body(&mut state))
    }

    /// Takes the lock in the page of `table`.
    pub(super) fn lock(&self, table: TableRef, party: Party) -> Result<Held<'_>, Broken> {
        let frame = &self.0[table.frame];
        let alive = |when| {
            self.with(table, |_| ()).ok_or_else(|| {
                let kind = frame.state.lock().kind;
                let now = match kind {
                    Kind::Free => "is free",
                    Kind::Table => "is another page table",
                    Kind::Other => "is in use as something else",
                };
                let what = format!("{when} the lock of a page table, its page {now}");
                Broken::new(Rule::LockOfALivePageTable, what)
            })
        };
        alive("before a task takes")?;
        let held = frame.lock.lock(party);
        alive("while a task waits for")?;
        Ok(held)
    }

    /// A reference to the page, if it is in use, as page table or not.
    pub(super) fn try_get(&self, frame: usize) -> bool {
        let mut state = self.0[frame].state.lock();
        let used = state.references > 0;
        state.references += usize::from(used);
        used
    }

    /// Drops a reference to the page; the last one frees it.
    pub(super) fn put(&self, frame: usize) -> Result<(), Broken> {
        let mut state = self.0[frame].state.lock();
        state.references -= 1;
        if state.references > 0 {
            return Ok(());
        }
        let is_table = state.kind == Kind::Table;
        state.kind = Kind::Free;
        state.generation += 1;
        let mapped = state.entries.iter().flatten().any(|page| matches!(page, Page::Folio(_)));
        if is_table && (mapped || state.shares > 0) {
            let what = format!(
                "a page table is freed with {} sharing it and {}",
                state.shares,
                if mapped { "a folio mapped" } else { "nothing mapped" }
            );
            return Err(Broken::new(Rule::ShareCountMatchesUsers, what));
        }
        Ok(())
    }

    /// Every page table.
    pub(super) fn all(&self) -> impl Iterator<Item = TableRef> {
        self.0.iter().enumerate().filter_map(|(frame, page)| {
            let state = page.state.lock();
            (state.kind == Kind::Table).then_some(TableRef { frame, generation: state.generation })
        })
    }

    pub(super) fn pages(&self) -> usize {
        self.0.len()
    }
}
