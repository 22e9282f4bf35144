// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that works while it migrates from daemon to daemon, where each VMM has memory of its own.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::random::Random;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const SOON: Duration = Duration::from_secs(20);
/// What the guest allocates and frees.
const BLOCK: u64 = 16 * PAGE;
/// Memory below has the rings and the buffers.
const FIRST_BLOCK: u64 = MIB;
const END: u64 = 48 * MIB;
const STEPS: usize = 200;
/// Offset of `actual` in the configuration space.
const ACTUAL: u32 = 4;
/// `VIRTIO_BALLOON_S_MEMTOT`.
const TOTAL: u16 = 5;
/// What the guest says that it has, and a little more in each place.
const TOTAL_BYTES: u64 = 1 << 30;

struct Host {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Host {
    fn start(args: &[&str]) -> Self {
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), SOON);
        Self { daemon, control }
    }

    fn wait_for(&self, path: &str, pointer: &str, value: u64) {
        wait_until(SOON, Duration::from_millis(2), || {
            let answer = self.control.get(path).unwrap();
            match answer.pointer(pointer).and_then(Value::as_u64) {
                Some(found) if found == value => Ok(()),
                _ => Err(format!("{pointer} is not {value}: {answer}")),
            }
        })
        .unwrap();
    }
}

/// What a block of memory holds.
#[derive(Clone, Copy, Debug)]
enum Contents {
    /// The pattern of a generation, in use.
    Held(u16),
    /// The same, given away while discarding paused.
    Kept(u16),
    /// Nothing, since it was discarded or never written.
    Zero,
    /// Whatever the device makes of a chain that it has not returned.
    Reported,
}

struct Guest {
    attachment: Attachment,
    random: Random,
    blocks: Vec<(GpaRange, Contents)>,
    /// Blocks in the balloon, by index.
    ballooned: Vec<usize>,
    generation: u16,
    /// What its CPU has written since memory was copied.
    written: Vec<GpaRange>,
    /// Whether it migrates, so that nothing is discarded.
    migrates: bool,
}

fn memory() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn range(start: Gpa, end: Gpa) -> GpaRange {
    GpaRange::between(start, end)
}

impl Guest {
    fn boot(host: &Host) -> Self {
        let ram = memory();
        let attachment =
            Attachment::connect(&host.daemon.socket(), &ram, AttachOptions::default()).unwrap();
        assert!(attachment.reserved().end().unwrap() <= Gpa(FIRST_BLOCK));
        let blocks = (0..).map(|index| Gpa(FIRST_BLOCK + index * BLOCK));
        let blocks = blocks.take_while(|start| start.0 < END);
        let blocks = blocks.filter_map(|start| GpaRange::new(start, BLOCK));
        let blocks = blocks.filter(|block| ram.contains(*block)).map(|at| (at, Contents::Zero));
        Self {
            attachment,
            random: Random(1),
            blocks: blocks.collect(),
            ballooned: Vec::new(),
            generation: 0,
            written: Vec::new(),
            migrates: false,
        }
    }

    /// Fills a free block and returns its index.
    fn allocate(&mut self) -> usize {
        let index = loop {
            let index = self.random.index(self.blocks.len());
            let free = matches!(self.blocks[index].1, Contents::Kept(_) | Contents::Zero);
            if free && !self.ballooned.contains(&index) {
                break index;
            }
        };
        self.generation += 1;
        let (block, contents) = &mut self.blocks[index];
        self.attachment.ram().write_pattern(*block, self.generation).unwrap();
        self.written.push(*block);
        *contents = Contents::Held(self.generation);
        index
    }

    /// The device has returned a chain that gave a block away.
    fn gave_away(&mut self, index: usize) {
        let contents = &mut self.blocks[index].1;
        *contents = match *contents {
            Contents::Held(generation) if self.migrates => Contents::Kept(generation),
            _ => Contents::Zero,
        };
        self.check(index);
    }

    fn check(&self, index: usize) {
        let (block, contents) = self.blocks[index];
        let ram = self.attachment.ram();
        match contents {
            Contents::Held(generation) | Contents::Kept(generation) => {
                ram.verify_pattern(block, generation).unwrap();
            }
            Contents::Zero => assert!(ram.is_zero(block).unwrap(), "{block} is not zero"),
            Contents::Reported => {}
        }
    }

    fn check_all(&self) {
        (0..self.blocks.len()).for_each(|index| self.check(index));
    }

    fn buffer(&self, index: usize) -> Buffer {
        Buffer::writable(self.blocks[index].0.start(), u32::try_from(BLOCK).unwrap())
    }

    /// Allocates, frees and reports.
    fn work(&mut self) {
        let queue = self.attachment.reporting_queue().unwrap();
        for _ in 0..STEPS {
            self.allocate();
            let (first, second) = (self.allocate(), self.allocate());
            let buffers = [self.buffer(first), self.buffer(second)];
            self.attachment.submit_and_wait(queue, &buffers).unwrap();
            [first, second].into_iter().for_each(|index| self.gave_away(index));
        }
        self.check_all();
        let held = self.blocks.iter().filter(|(_, found)| matches!(found, Contents::Held(_)));
        let held: Vec<_> = held.map(|(block, _)| *block).collect();
        // So that some are free the next time.
        for block in held.into_iter().step_by(2) {
            let index = self.blocks.iter().position(|(at, _)| *at == block).unwrap();
            let buffer = self.buffer(index);
            self.attachment.submit_and_wait(queue, &[buffer]).unwrap();
            self.gave_away(index);
        }
    }

    /// Tells the device of a block that goes into the balloon, or out of it.
    fn balloon(&mut self, queue: BalloonQueue, index: usize) {
        let first = u32::try_from(self.blocks[index].0.start().0 / PAGE).unwrap();
        let pages = u32::try_from(BLOCK / PAGE).unwrap();
        let pfns: Vec<u8> = (first..first + pages).flat_map(u32::to_le_bytes).collect();
        let at = self.attachment.scratch().start();
        self.attachment.ram().write(at, &pfns).unwrap();
        let queue = self.attachment.index(queue).unwrap();
        let chain = [Buffer::readable(at, u32::try_from(pfns.len()).unwrap())];
        self.attachment.submit_and_wait(queue, &chain).unwrap();
    }

    /// Does what the operator wants.
    fn follow(&mut self, host: &Host, bytes: u64) {
        host.control.done("PUT", "/v1/target", &json!({ "bytes": bytes }).to_string()).unwrap();
        assert!(self.attachment.wait_config_change(SOON).unwrap(), "the driver was not notified");
        let target = u64::from(self.attachment.get_config().unwrap().num_pages) * PAGE;
        assert_eq!(target, bytes);
        let blocks = usize::try_from(target / BLOCK).unwrap();
        while self.ballooned.len() < blocks {
            let index = self.allocate();
            self.balloon(BalloonQueue::Inflate, index);
            self.gave_away(index);
            self.ballooned.push(index);
        }
        for index in self.ballooned.split_off(blocks) {
            self.balloon(BalloonQueue::Deflate, index);
        }
        let pages = u32::try_from(target / PAGE).unwrap();
        self.attachment.write_config(ACTUAL, &pages.to_le_bytes()).unwrap();
        host.wait_for("/v1/status", "/actual_bytes", bytes);
    }

    /// Hands out the buffer of the statistics, which the device keeps.
    fn send_statistics(&mut self, host: &Host, total: u64) {
        let queue = self.attachment.index(BalloonQueue::Stats).unwrap();
        let at = Gpa(self.attachment.scratch().start().0 + PAGE);
        let sample = [&TOTAL.to_le_bytes()[..], &total.to_le_bytes()].concat();
        self.attachment.ram().write(at, &sample).unwrap();
        let ring = self.attachment.ring(queue).unwrap();
        ring.add_chain(&[Buffer::readable(at, 10)]).unwrap();
        self.attachment.publish(queue).unwrap();
        host.wait_for("/v1/statistics", "/sample/values/total_bytes", total);
    }

    /// Answers a request for statistics with the buffer that the device has.
    fn refresh_statistics(&mut self, host: &Host, total: u64) {
        let queue = self.attachment.index(BalloonQueue::Stats).unwrap();
        host.control.done("POST", "/v1/statistics/refresh", "").unwrap();
        let returned = self.attachment.wait_used(queue, SOON).unwrap();
        assert!(returned.is_some(), "the buffer did not come back: {}", host.daemon.log());
        self.send_statistics(host, total);
    }

    /// Reports blocks that the device does not take any more, and stops it.
    fn stop(&mut self) -> (Vec<usize>, Vec<(u16, u16)>) {
        let queue = self.attachment.reporting_queue().unwrap();
        self.attachment.enable_queue(queue, false).unwrap();
        let blocks: Vec<usize> = (0..3).map(|_| self.allocate()).collect();
        for &index in &blocks {
            let buffer = self.buffer(index);
            self.attachment.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
            self.blocks[index].1 = Contents::Reported;
        }
        self.attachment.publish(queue).unwrap();
        (blocks, self.attachment.stop().unwrap())
    }

    /// Waits for the chains of [`Guest::stop`].
    fn take_reported(&mut self, blocks: Vec<usize>) {
        let queue = self.attachment.reporting_queue().unwrap();
        for index in blocks {
            let used = self.attachment.wait_used(queue, SOON).unwrap();
            assert!(used.is_some(), "a chain that was in flight is lost");
            self.gave_away(index);
        }
    }

    /// Copies what has changed: what the CPU wrote, and what the device has logged.
    fn copy_changed(&mut self, log: &DirtyLog, copy: &Ram) {
        let mut changed = std::mem::take(&mut self.written);
        changed.push(self.attachment.scratch());
        for queue in self.attachment.queue_indices_in_use() {
            // Descriptors and available ring: the used ring, which follows, is the device's.
            let layout = *self.attachment.ring(queue).unwrap().layout();
            changed.push(range(layout.desc(), layout.used()));
        }
        changed.extend(log.take().unwrap().into_iter().filter_map(|at| GpaRange::new(at, PAGE)));
        changed.into_iter().for_each(|part| self.copy(part, copy));
    }

    fn copy(&self, part: GpaRange, copy: &Ram) {
        let mut bytes = vec![0; usize::try_from(part.len()).unwrap()];
        self.attachment.ram().read(part.start(), &mut bytes).unwrap();
        copy.write(part.start(), &bytes).unwrap();
    }

    /// Copies memory while the guest works, and stops it. Returns the copy, the device's state, the blocks of
    /// chains in flight, and where the queues stopped.
    #[expect(clippy::type_complexity, reason = "each is used once")]
    fn leave(&mut self) -> (Ram, Vec<u8>, Vec<usize>, Vec<(u16, u16)>) {
        let (copy, log) = (memory(), DirtyLog::new(Gpa(END)).unwrap());
        self.attachment.set_log(&log).unwrap();
        self.attachment.set_logging(true).unwrap();
        self.migrates = true;
        for region in self.attachment.ram().regions() {
            self.copy(region.range, &copy);
        }
        self.written.clear();
        for _ in 0..2 {
            self.work();
            self.copy_changed(&log, &copy);
        }
        let (blocks, bases) = self.stop();
        let state = self.attachment.save_state().unwrap();
        self.copy_changed(&log, &copy);
        (copy, state, blocks, bases)
    }

    fn migrate(mut self, to: &Host) -> Self {
        let before = self.attachment.get_config().unwrap();
        let (copy, state, blocks, _) = self.leave();
        let attachment = self.attachment.migrate(&to.daemon.socket(), &copy, &state).unwrap();
        let mut arrived = Self { attachment, migrates: false, ..self };
        assert_eq!(arrived.attachment.get_config().unwrap(), before);
        arrived.take_reported(blocks);
        arrived.check_all();
        arrived
    }
}

#[test]
fn guest_that_migrates_twice_loses_nothing() {
    let hosts = [(); 3].map(|()| Host::start(&["--statistics"]));
    let mut guest = Guest::boot(&hosts[0]);
    guest.send_statistics(&hosts[0], TOTAL_BYTES);
    guest.follow(&hosts[0], 2 * MIB);
    guest.work();
    for (host, target, total) in
        [(&hosts[1], 4 * MIB, TOTAL_BYTES + 1), (&hosts[2], MIB, TOTAL_BYTES + 2)]
    {
        guest = guest.migrate(host);
        host.wait_for("/v1/status", "/actual_bytes", guest.ballooned.len() as u64 * BLOCK);
        guest.refresh_statistics(host, total);
        guest.follow(host, target);
        guest.work();
    }
    for (host, next) in hosts.iter().zip([true, true, false]) {
        assert_eq!(host.control.get("/v1/status").unwrap()["driver"] == "no_frontend", next);
    }
    drop(guest);
    let skipped: Vec<u64> = hosts
        .iter()
        .map(|host| {
            let summary = host.daemon.session_summary(SOON).unwrap();
            summary.skipped_bytes.get("migrating").copied().unwrap_or(0)
        })
        .collect();
    assert!(skipped[0] > 0 && skipped[1] > 0 && skipped[2] == 0, "{skipped:?}");
}

/// The guest goes on at its source, and migrates elsewhere.
#[test]
fn destination_that_offers_less_is_refused() {
    let (source, less) = (Host::start(&["--statistics"]), Host::start(&[]));
    let mut guest = Guest::boot(&source);
    guest.send_statistics(&source, TOTAL_BYTES);
    guest.work();
    let (copy, state, blocks, bases) = guest.leave();
    let options = AttachOptions { queues: Some(vec![]), poison: None, ..AttachOptions::default() };
    let mut there = Attachment::connect(&less.daemon.socket(), &copy, options).unwrap();
    assert!(there.load_state(&state).is_err());
    let remedy = "start the daemon with the options that the other one had";
    assert!(less.daemon.wait_for_log(remedy, SOON).unwrap(), "{}", less.daemon.log());

    guest.attachment.set_logging(false).unwrap();
    guest.migrates = false;
    for (queue, base) in bases {
        guest.attachment.start_queue(queue, base).unwrap();
        guest.attachment.enable_queue(queue, true).unwrap();
        guest.attachment.kick(queue).unwrap();
    }
    guest.take_reported(blocks);
    guest.refresh_statistics(&source, TOTAL_BYTES + 1);
    guest.work();
    let next = Host::start(&["--statistics", "--free-page-hints"]);
    let mut guest = guest.migrate(&next);
    guest.refresh_statistics(&next, TOTAL_BYTES + 2);
    guest.work();
}
