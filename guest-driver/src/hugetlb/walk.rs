// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Those that reach page tables without a lock: GUP-fast, speculative references, and other users of the
//! memory that page tables are made of.

use alloc::format;

use super::broken::{Broken, Rule};
use super::{Hugetlb, Page, Task};

impl Hugetlb {
    /// Looks up page `index` in address space `space` without a lock, with interrupts disabled
    /// (`gup_fast`); whether there is one.
    ///
    /// # Errors
    /// [`Rule::GupFastReturnsOwnPages`] if the page is another's.
    pub fn gup_fast(&self, task: &Task, space: usize, index: usize) -> Result<bool, Broken> {
        let (piece, entry) = self.place(index);
        let _interrupts_disabled = self.walkers.read(task.0);
        let Some(table) = self.spaces[space].pud(piece) else { return Ok(false) };
        let look = || {
            self.step();
            self.tables.with(table, |state| state.entries[entry]).ok_or_else(|| {
                let what = "GUP-fast walks a page table that was freed";
                Broken::new(Rule::GupFastReturnsOwnPages, what)
            })
        };
        let Some(page) = look()? else { return Ok(false) };
        // The page is pinned now, and the entry must still be the same.
        if look()? != Some(page) {
            return Ok(false);
        }
        match page {
            Page::Private(owner) if owner != space => {
                let what = format!("GUP-fast returns a private page of address space {owner}");
                Err(Broken::new(Rule::GupFastReturnsOwnPages, what))
            }
            _ => Ok(true),
        }
    }

    /// Takes a reference to each page that is in use, whatever it is, and drops it, as a walk over page
    /// frames does (`folio_try_get`).
    ///
    /// # Errors
    /// The rule that is broken when the last reference is dropped.
    pub fn speculate(&self) -> Result<(), Broken> {
        for frame in 0..self.tables.pages() {
            self.step();
            if self.tables.try_get(frame) {
                self.step();
                self.tables.put(frame)?;
            }
        }
        Ok(())
    }

    /// Uses a free page of the memory for page tables as something else, and frees it.
    ///
    /// # Errors
    /// None; the page is no page table.
    pub fn reuse(&self) -> Result<(), Broken> {
        self.step();
        let Some(frame) = self.tables.alloc_other() else { return Ok(()) };
        self.step();
        self.tables.put(frame)
    }
}
