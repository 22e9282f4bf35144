// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which pages of guest memory this daemon wrote, for live migration: the log that a frontend
//! shares with `VHOST_USER_SET_LOG_BASE` (vhost-user protocol, "Migration").
//!
//! vhost-user-backend 0.24 has a bitmap of its own for it, which loses what is written to a region
//! that arrives after the log, and never stops logging once it has begun. This one can be [joined] to a
//! log later, and listens to `VHOST_F_LOG_ALL`.
//!
//! [joined]: LogBitmap::join

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;
use super::log_pages::{LogPages, place};

/// One region's part of the log.
#[derive(Clone, Debug)]
pub(crate) struct RegionLog {
    log: Arc<MmapLogReg>,
    pages: LogPages,
}

impl RegionLog {
    /// The log of all guest memory, as the frontend shared it.
    pub(crate) fn whole(&self) -> Arc<MmapLogReg> {
        Arc::clone(&self.log)
    }

    /// Marks the pages of the region from byte `from` to byte `to`, both included.
    fn mark(&self, from: usize, to: usize) {
        for (byte, bit) in self.pages.bits(from, to).map(place) {
            self.log[byte].fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn is_marked(&self, at: usize) -> bool {
        let mut bits = self.pages.bits(at, at).map(place);
        bits.any(|(byte, bit)| self.log[byte].load(Ordering::Relaxed) & bit != 0)
    }
}

impl MemRegionBitmap for RegionLog {
    /// # Errors
    /// If the log is too small for the region.
    fn new<R: GuestMemoryRegion>(region: &R, log: Arc<MmapLogReg>) -> io::Result<Self> {
        // The log does not tell its length, but this looks at it: all later indices are in range.
        AtomicBitmapMmap::new(region, Arc::clone(&log))?;
        Ok(Self { log, pages: LogPages::of(region)? })
    }
}

/// The dirty pages of one region of guest memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogBitmap {
    shared: Arc<Shared>,
    /// Where in the region this slice begins, in bytes.
    base: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: RwLock<State>,
    unlogged: Unlogged,
}

/// The first and the last byte that were written before there was a log.
#[derive(Debug)]
struct Unlogged([AtomicUsize; 2]);

impl Default for Unlogged {
    fn default() -> Self {
        Self([AtomicUsize::new(usize::MAX), AtomicUsize::new(0)])
    }
}

impl Unlogged {
    fn note(&self, from: usize, to: usize) {
        self.0[0].fetch_min(from, Ordering::Relaxed);
        self.0[1].fetch_max(to, Ordering::Relaxed);
    }

    fn range(&self) -> Option<(usize, usize)> {
        let [first, last] = self.0.each_ref().map(|byte| byte.load(Ordering::Relaxed));
        (first <= last).then_some((first, last))
    }
}

#[derive(Debug, Default)]
struct State {
    log: Option<RegionLog>,
    /// The driver's side acked `VHOST_F_LOG_ALL`.
    on: bool,
}

impl LogBitmap {
    /// The log, if this region has one.
    pub(crate) fn log(&self) -> Option<RegionLog> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner).log.clone()
    }

    /// Starts or stops logging; the log stays.
    pub(crate) fn set_logging(&self, on: bool) {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).on = on;
    }

    /// Gives a region that is new to the memory table its part of the log, unless it has one.
    ///
    /// The worker sees a region before this can be called, and may have used a ring in it: what
    /// was written since is logged now if logging is on, from the first byte to the last.
    pub(crate) fn join(&self, log: RegionLog, on: bool) {
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        state.on = on;
        if state.log.is_some() {
            return;
        }
        if on && let Some((first, last)) = self.shared.unlogged.range() {
            log.mark(first, last);
        }
        state.log = Some(log);
    }
}

impl Bitmap for LogBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else { return };
        let from = self.base.saturating_add(offset);
        let to = from.saturating_add(last);
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        match &state.log {
            Some(log) if state.on => log.mark(from, to),
            Some(_) => {}
            None => self.shared.unlogged.note(from, to),
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        state.log.as_ref().is_some_and(|log| log.is_marked(self.base.saturating_add(offset)))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { shared: Arc::clone(&self.shared), base: self.base.saturating_add(offset) }
    }
}

impl BitmapReplace for LogBitmap {
    type InnerBitmap = RegionLog;

    /// A log begins, or goes on elsewhere. What was written before it is no part of it.
    fn replace(&self, log: RegionLog) {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner).log = Some(log);
    }
}

impl BitmapSlice for LogBitmap {}

impl WithBitmapSlice<'_> for LogBitmap {
    type S = Self;
}

impl NewBitmap for LogBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// The dirty log of all guest memory, carried over from one memory table to the next.
#[derive(Default)]
pub(crate) struct DirtyLog {
    memory: Arc<GuestMemory>,
    whole: Option<Arc<MmapLogReg>>,
    on: bool,
}

impl DirtyLog {
    /// The frontend has replaced the memory table: regions without a log get theirs.
    ///
    /// # Errors
    /// If logging is on and the log is too small for a region; the others have theirs then.
    pub(crate) fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), LogTooSmall> {
        // The newest log is on every region that was there when it came.
        if let Some(log) = self.memory.iter().find_map(|region| region.bitmap().log()) {
            self.whole = Some(log.whole());
        }
        self.memory = memory;
        let mut result = Ok(());
        for region in self.memory.iter() {
            let Some(whole) = &self.whole else {
                region.bitmap().set_logging(self.on);
                continue;
            };
            match RegionLog::new(region, Arc::clone(whole)) {
                Ok(log) => region.bitmap().join(log, self.on),
                // Whoever starts to log again sends a log that is large enough.
                Err(_) if !self.on => {}
                Err(source) => {
                    let gpa = region.start_addr().raw_value();
                    result = Err(LogTooSmall { gpa, len: region.len(), source });
                }
            }
        }
        result
    }

    /// The frontend starts or stops logging (`VHOST_F_LOG_ALL`).
    pub(crate) fn set_logging(&mut self, on: bool) {
        self.on = on;
        for region in self.memory.iter() {
            region.bitmap().set_logging(on);
        }
    }
}

/// A region came that the log of the migration under way does not cover.
#[derive(Debug, thiserror::Error)]
#[error(
    "the dirty log does not cover the memory region of {len} bytes at guest address {gpa:#x}: \
     a larger log has to come first (VHOST_USER_SET_LOG_BASE)"
)]
pub(crate) struct LogTooSmall {
    gpa: u64,
    len: u64,
    #[source]
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log can only be had from the framework: `tests/migration.rs` goes on from here.
    #[test]
    fn writes_before_the_log_exists_are_remembered() {
        let bitmap = LogBitmap::default();
        assert_eq!(bitmap.shared.unlogged.range(), None);
        bitmap.mark_dirty(0x5000, 0);
        assert_eq!(bitmap.shared.unlogged.range(), None);
        bitmap.slice_at(0x3000).mark_dirty(0x10, 8);
        bitmap.mark_dirty(0x2000, 4);
        assert_eq!(bitmap.shared.unlogged.range(), Some((0x2000, 0x3017)));
        bitmap.slice_at(usize::MAX).mark_dirty(usize::MAX, usize::MAX);
        assert_eq!(bitmap.shared.unlogged.range(), Some((0x2000, usize::MAX)));
        assert!(!bitmap.dirty_at(0x2000));
    }
}
