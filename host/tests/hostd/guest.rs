// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that says what the test wants: a driver in a thread, attached to a real daemon.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_driver::ram::{Gpa, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

/// Memory of the guest, all of it resident.
pub(crate) const MEMORY: u64 = 256 << 20;

/// Between two looks at what the test wants.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Tags of statistics (virtio 1.3, 5.5.6.3).
const TOTAL: u16 = 5;
const AVAILABLE: u16 = 6;
const OOM_KILLS: u16 = 10;

/// What the guest says.
#[derive(Debug, Default)]
pub(crate) struct Says {
    /// Bytes that it uses.
    pub(crate) used: AtomicU64,
    pub(crate) oom_kills: AtomicU64,
    /// Whether it keeps its statistics to itself.
    pub(crate) is_silent: AtomicBool,
    /// How often it was asked.
    pub(crate) asked: AtomicU64,
    is_over: AtomicBool,
}

/// The guest, which ends with the test.
pub(crate) struct Guest {
    pub(crate) says: Arc<Says>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Attaches to the daemon that listens at `socket`.
    pub(crate) fn attach(socket: PathBuf) -> Self {
        let says = Arc::new(Says { used: AtomicU64::new(16 << 20), ..Says::default() });
        let for_thread = Arc::clone(&says);
        let thread = Some(thread::spawn(move || drive(&socket, &for_thread)));
        Self { says, thread }
    }

    pub(crate) fn asked(&self) -> u64 {
        self.says.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.says.is_over.store(true, Ordering::Relaxed);
        if let Some(Err(failed)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(failed);
        }
    }
}

fn drive(socket: &std::path::Path, says: &Says) {
    let ram = Ram::new(&RamLayout::flat(MEMORY, Backing::Memfd)).unwrap();
    // All of it but where the rings will be: a ring with something in it is not that of a new driver.
    for at in (1 << 20..MEMORY).step_by(1 << 20) {
        ram.write(Gpa(at), &[1; 1 << 20]).unwrap();
    }
    let mut driver = Attachment::connect(socket, &ram, AttachOptions::default()).unwrap();
    let queue = driver.index(BalloonQueue::Stats).unwrap();
    driver.use_balloon().unwrap();
    send(&mut driver, queue, says, 0);
    let (mut held, mut owes) = (0, false);
    while !says.is_over.load(Ordering::Relaxed) {
        if driver.wait_used(queue, LOOK_EVERY).unwrap().is_some() {
            says.asked.fetch_add(1, Ordering::Relaxed);
            owes = true;
        }
        // It does at once what the device wants.
        let wanted = driver.get_config().unwrap().num_pages;
        if wanted != held {
            driver.write_config(4, &wanted.to_le_bytes()).unwrap();
            held = wanted;
        }
        if owes && !says.is_silent.load(Ordering::Relaxed) {
            send(&mut driver, queue, says, held);
            owes = false;
        }
    }
}

fn send(driver: &mut Attachment, queue: u16, says: &Says, held: u32) {
    let used = says.used.load(Ordering::Relaxed) + u64::from(held) * 4096;
    let available = MEMORY.saturating_sub(used);
    let oom_kills = says.oom_kills.load(Ordering::Relaxed);
    // As Linux counts where the driver may deflate on OOM: with the balloon.
    let values = [(TOTAL, MEMORY), (AVAILABLE, available), (OOM_KILLS, oom_kills)];
    let value = |(tag, value): (u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let bytes = values.map(value).concat();
    let at = driver.scratch().start();
    driver.ram().write(at, &bytes).unwrap();
    let buffer = Buffer::readable(at, u32::try_from(bytes.len()).unwrap());
    driver.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    driver.publish(queue).unwrap();
}
