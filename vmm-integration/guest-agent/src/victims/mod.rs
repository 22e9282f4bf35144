// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that the OOM killer chooses first, and that keeps its address space when it is killed.
//!
//! | file | content |
//! |---|---|
//! | [`process`] | the process |
//! | [`virtual_machine`] | its virtual machine, which uses its memory |
//! | [`pin`] | its pinned memory |
//! | [`tracer`] | stops it at its exit |

mod pin;
pub(crate) mod process;
mod tracer;
mod virtual_machine;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::victim::{VictimPlan, VictimReport};

use crate::lock::lock;
use crate::stop::Stop;
use tracer::Tracer;

/// More than keep the lock of an address space taken.
const MAX_LOCKERS: u32 = 16;
/// Walks all pages with the lock taken for writing, and clears their accessed bits.
const CLEAR_ACCESSED: &[u8] = b"1";

/// The process that there is, or was last.
#[derive(Default)]
pub(crate) struct Victims(Mutex<Option<Victim>>);

struct Victim {
    tracer: Tracer,
    lockers: Vec<JoinHandle<()>>,
    stop: Arc<Stop>,
    locked: Arc<AtomicU64>,
}

impl Victims {
    /// Starts one and returns when its memory is in use.
    pub(crate) fn start(&self, plan: VictimPlan) -> Result<()> {
        let mut current = lock(&self.0);
        if current.as_ref().is_some_and(|victim| victim.tracer.is_running()) {
            bail!("a victim is there: release it first");
        }
        *current = Some(Victim::start(&plan)?);
        Ok(())
    }

    /// Returns how it stands. With `release` it ends first.
    pub(crate) fn report(&self, release: bool) -> Result<VictimReport> {
        let mut current = lock(&self.0);
        let victim = current.as_mut().context("there was no victim: start one first")?;
        if release {
            victim.stop.now();
            for locker in victim.lockers.drain(..) {
                // A panic is on the console.
                let _ = locker.join();
            }
            victim.tracer.release()?;
        }
        Ok(VictimReport {
            pid: victim.tracer.pid(),
            state: victim.tracer.state(),
            locked: victim.locked.load(Ordering::Relaxed),
        })
    }
}

impl Victim {
    fn start(plan: &VictimPlan) -> Result<Self> {
        let VictimPlan { memory, lockers } = plan;
        ensure!(!memory.is_empty(), "no memory: expected a mapping at least");
        ensure!(*lockers <= MAX_LOCKERS, "{lockers} lockers: expected at most {MAX_LOCKERS}");
        let tracer = Tracer::start(plan)?;
        let mut victim =
            Self { tracer, lockers: Vec::new(), stop: Arc::default(), locked: Arc::default() };
        for _ in 0..*lockers {
            victim.spawn_locker()?;
        }
        Ok(victim)
    }

    fn spawn_locker(&mut self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.tracer.pid());
        let file = OpenOptions::new().write(true).open(&path);
        let file =
            file.with_context(|| format!("opening {path}: expected CONFIG_PROC_PAGE_MONITOR"))?;
        let (stop, locked) = (Arc::clone(&self.stop), Arc::clone(&self.locked));
        let body = move || {
            while stop.goes_on() {
                if let Err(error) = file.write_all_at(CLEAR_ACCESSED, 0) {
                    eprintln!("guest-agent: writing to {path}: {error}");
                    return;
                }
                locked.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = thread::Builder::new().name("locker".to_owned()).spawn(body);
        self.lockers.push(thread.context("starting a thread that takes the lock")?);
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.stop.now();
        if let Err(error) = self.tracer.release() {
            eprintln!("guest-agent: {error:#}");
        }
    }
}
