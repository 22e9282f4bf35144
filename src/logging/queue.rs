// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines on their way to the logger thread.

use std::io;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::Level;

use super::journal::mark;
use crate::lock::lock;

/// The most bytes that wait. As many again are in the logger thread's hands.
const MOST_WAITING: usize = 256 << 10;

/// What the logger thread's buffer keeps of its memory when it is idle, in bytes.
const KEPT_BYTES: usize = 8 << 10;

/// A bounded queue of lines that any thread fills without blocking, and one thread empties.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// Whole lines.
    text: String,
    /// Lines that came when the queue was full.
    lost: u64,
    /// The logger thread waits for lines, and has none in its hands.
    idle: bool,
}

impl Queue {
    /// Adds a line, which ends with a line feed, or counts it as lost. Never waits for the reader
    /// of the log.
    pub(crate) fn push(&self, line: &str) {
        let mut inner = self.lock();
        // Once one is lost so are all until the count is written, or lines would change places.
        if inner.lost > 0 || inner.text.len() + line.len() > MOST_WAITING {
            inner.lost = inner.lost.saturating_add(1);
        } else {
            inner.text.push_str(line);
        }
        if inner.idle {
            inner.idle = false;
            self.filled.notify_one();
        }
    }

    /// Waits until every line is written or given up, at most for `timeout`. Says whether that is
    /// so.
    pub(crate) fn flush(&self, timeout: Duration) -> bool {
        let busy = |inner: &mut Inner| !inner.idle || !inner.text.is_empty() || inner.lost > 0;
        let waited = self.emptied.wait_timeout_while(self.lock(), timeout, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Writes lines as they come, for as long as the process runs. Each is given to `write` by
    /// itself, in order. One that cannot be written is counted as lost.
    pub(super) fn serve(&self, mut write: impl FnMut(&str) -> io::Result<()>) -> ! {
        let (mut text, mut lost) = (String::new(), 0_u64);
        loop {
            text.clear();
            text.shrink_to(KEPT_BYTES);
            let more = self.take(&mut text);
            for line in text.split_inclusive('\n') {
                if lost > 0 && write(&lost_line(lost)).is_ok() {
                    lost = 0;
                }
                lost = lost.saturating_add(u64::from(write(line).is_err()));
            }
            lost = lost.saturating_add(more);
            if more > 0 && write(&lost_line(lost)).is_ok() {
                lost = 0;
            }
        }
    }

    /// Waits for lines and swaps them with `empty`. Returns how many were lost behind them.
    fn take(&self, empty: &mut String) -> u64 {
        let mut inner = self.lock();
        while inner.text.is_empty() && inner.lost == 0 {
            inner.idle = true;
            self.emptied.notify_all();
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.idle = false;
        mem::swap(&mut inner.text, empty);
        mem::take(&mut inner.lost)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lost_line(lost: u64) -> String {
    format!("{}{lost} log lines lost: standard error was not read\n", mark(Level::Warn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// A queue whose writer hands each line over and then waits to be let on.
    fn queue() -> (Arc<Queue>, Receiver<String>, SyncSender<io::Result<()>>) {
        let queue = Arc::new(Queue::default());
        let (lines, written) = sync_channel(0);
        let (go_on, wait) = sync_channel(0);
        let served = Arc::clone(&queue);
        thread::spawn(move || {
            served.serve(|line| {
                // The thread stays when its test is over, as in the daemon.
                if lines.send(line.to_owned()).is_err() {
                    loop {
                        thread::park();
                    }
                }
                wait.recv().unwrap_or(Ok(()))
            })
        });
        (queue, written, go_on)
    }

    #[test]
    fn lines_are_ordered_and_lost_ones_counted_in_place() {
        let (queue, written, go_on) = queue();
        queue.push("first\n");
        assert_eq!(written.recv().unwrap(), "first\n");
        // The writer is stuck now.
        let line = format!("{}\n", "x".repeat(1023));
        let fit = MOST_WAITING / line.len();
        for _ in 0..fit + 7 {
            queue.push(&line);
        }
        // There would be room for this one, and it would come before the count of those lost.
        queue.push("");
        assert!(!queue.flush(Duration::ZERO));
        go_on.send(Ok(())).unwrap();
        for _ in 0..fit {
            assert_eq!(written.recv().unwrap(), line);
            queue.push("");
            go_on.send(Ok(())).unwrap();
        }
        assert_eq!(written.recv().unwrap(), "8 log lines lost: standard error was not read\n");
        queue.push("last\n");
        go_on.send(Ok(())).unwrap();
        assert_eq!(written.recv().unwrap(), "last\n");
        go_on.send(Ok(())).unwrap();
        assert!(queue.flush(LONG));
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted() {
        let (queue, written, go_on) = queue();
        for (line, result) in [("a\n", Err(io::ErrorKind::StorageFull.into())), ("b\n", Ok(()))] {
            queue.push(line);
            if line == "b\n" {
                let lost = "1 log lines lost: standard error was not read\n";
                assert_eq!(written.recv().unwrap(), lost);
                go_on.send(Ok(())).unwrap();
            }
            assert_eq!(written.recv().unwrap(), line);
            go_on.send(result).unwrap();
            assert!(queue.flush(LONG));
        }
    }
}
