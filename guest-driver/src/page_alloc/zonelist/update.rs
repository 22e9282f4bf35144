// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Building the zonelists again (`__build_all_zonelists`).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::iter;

use super::scheme::{ZonelistFlaw, ZonelistUpdate};
use super::{Lists, Zonelists, in_order};
use crate::page_alloc::zone::{Zone, ZoneId};
use crate::page_alloc::zoneref::Zoneref;
use crate::sync::{self, Ordering, fence};

impl Zonelists {
    /// Builds all lists again. There is one writer at a time.
    pub(super) fn rebuild(&self, zones: &[Zone]) {
        let built: Box<[_]> = (0..self.copies[0].len()).map(|node| in_order(zones, node)).collect();
        match self.update {
            // None of its steps is a scheduling point.
            ZonelistUpdate::StopMachine => self.overwrite(&self.copies[0], &built, || {}),
            ZonelistUpdate::Overwrite => {
                self.overwrite(&self.copies[0], &built, || self.interruptible());
            }
            ZonelistUpdate::AppendAndTerminate => {
                for (list, zones) in self.copies[0].iter().zip(&built) {
                    self.append_and_terminate(list, zones);
                }
            }
            ZonelistUpdate::SequenceCountInterruptible => {
                self.counted(|| self.overwrite(&self.copies[0], &built, || self.interruptible()));
            }
            ZonelistUpdate::SequenceCountPrinting => self.counted(|| {
                self.prints();
                self.overwrite(&self.copies[0], &built, || self.step());
            }),
            ZonelistUpdate::SequenceCount => {
                self.counted(|| self.overwrite(&self.copies[0], &built, || self.step()));
                self.prints();
            }
            ZonelistUpdate::Rcu => self.swap(&built),
        }
    }

    /// A store that others may come before.
    fn step(&self) {
        self.point.pass_store();
    }

    /// The same with an interrupt, perhaps.
    fn interruptible(&self) {
        self.step();
        if let Some(around) = self.surroundings.get() {
            around.interruptible();
        }
    }

    fn prints(&self) {
        if let Some(around) = self.surroundings.get() {
            around.prints();
        }
    }

    /// Writes `lists` from their fronts.
    fn overwrite(&self, lists: &Lists, built: &[Vec<ZoneId>], step: impl Fn()) {
        for (list, zones) in lists.iter().zip(built) {
            write(list, zones, &step);
        }
    }

    /// Calls `change` with the sequence count odd (`write_seqlock`).
    fn counted(&self, change: impl FnOnce()) {
        let count = self.sequence.load(Ordering::Relaxed);
        let around = self.surroundings.get();
        self.step();
        self.sequence.store(count + 1, Ordering::Relaxed);
        if let Some(around) = around {
            around.updates(true);
        }
        fence(Ordering::Release);
        change();
        self.step();
        self.sequence.store(count + 2, Ordering::Release);
        if let Some(around) = around {
            around.updates(false);
        }
    }

    /// From the proposal: "first append a copy of the old zonelist to the end, then overwrite and terminate
    /// with NULL". What is behind the end is written first, from the back, so that each zone stays visible.
    fn append_and_terminate(&self, list: &[Zoneref], zones: &[ZoneId]) {
        let old: Vec<ZoneId> = list.iter().map_while(Zoneref::zone).collect();
        let set = |index: usize, zone| {
            self.interruptible();
            list[index].set(zone);
        };
        set(2 * old.len(), None);
        for (index, &zone) in old.iter().enumerate().rev() {
            set(old.len() + index, Some(zone));
        }
        for (index, &zone) in zones.iter().enumerate() {
            set(index, Some(zone));
        }
        set(zones.len(), None);
    }

    /// Writes the lists beside those that are walked, and swaps the pointer to them.
    fn swap(&self, built: &[Vec<ZoneId>]) {
        let current = self.current.load(Ordering::Relaxed);
        let next = 1 - current;
        self.overwrite(&self.copies[next], built, || self.step());
        self.step();
        self.current.store(next, Ordering::SeqCst);
        let Some(readers) = &self.readers else { return };
        if self.flaw == Some(ZonelistFlaw::SwapsWithoutGrace) {
            self.free(current);
            return;
        }
        // `synchronize_rcu`, and the memory is free for the next update.
        let mut freed = false;
        readers.retire(current, |copy| {
            self.free(copy);
            freed = true;
        });
        while !freed {
            sync::yield_now();
            readers.flush(|copy| {
                self.free(copy);
                freed = true;
            });
        }
    }

    /// A reader that still has it finds zones that are none.
    fn free(&self, copy: usize) {
        for zoneref in self.copies[copy].iter().flatten() {
            self.step();
            zoneref.poison();
        }
    }
}

/// Writes one list, and its end.
fn write(list: &[Zoneref], zones: &[ZoneId], step: &impl Fn()) {
    let entries = zones.iter().copied().map(Some).chain(iter::once(None));
    for (zoneref, zone) in list.iter().zip(entries) {
        step();
        zoneref.set(zone);
    }
}
