// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One virtqueue: a driver that adds chains, a worker that serves them, and a frontend that starts, stops,
//! enables, resets and rewires the queue in between.
//!
//! Chains come back in the order in which they were added, each once, and only while the queue runs. After a
//! pass over a queue that runs none is left but the one that is kept. A driver that wants to know of what came
//! back has been notified.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::guest::Guest;
use crate::device::Outcome;
use crate::discard::GuestMemory;
use crate::vhost_user::vring::{Memory, Pass, Vring};

/// What happens to the queue, in this order.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    size: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    /// The driver adds chains.
    Add(u8),
    /// It adds one whose head is past the table.
    AddBad(u16),
    /// It wants interrupts, or none.
    Interrupts(bool),
    /// The worker serves at most this many.
    Serve {
        most: u8,
        answers: u8,
    },
    Stop,
    Start {
        base: u16,
    },
    Enable(bool),
    Kick(bool),
    Call(bool),
    ReturnKept,
    /// The driver begins with an empty ring, once the queue is stopped.
    NewRing,
    /// The device is reset, and a driver begins with an empty ring in the same place.
    Reset,
}

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x4000;

thread_local! {
    static GUEST: Guest = Guest::new();
}

pub(crate) fn run(input: Input) {
    GUEST.with(|guest| {
        guest.clear();
        let mut queue = Queue::new(Arc::clone(&guest.memory), 1 << (input.size % 6));
        for step in input.steps.iter().take(48) {
            queue.step(*step);
        }
        queue.finish();
    });
}

struct Queue {
    memory: Memory,
    vring: Vring,
    size: u16,
    ready: bool,
    enabled: bool,
    /// No chain is served until it is started again.
    broken: bool,
    /// Heads in the order in which they were added to this ring, and with what each must come back.
    added: Vec<(u16, Option<u32>)>,
    /// How many of them came back.
    used: usize,
    /// The last one that was served is kept.
    kept: bool,
    /// The ring was emptied while the queue was disabled, which learns of it when it is enabled.
    emptied: bool,
    call: Option<OwnedFd>,
    wants_interrupts: bool,
    /// Chains came back, and the driver does not know.
    owed: bool,
}

impl Queue {
    fn new(memory: Arc<GuestMemory>, size: u16) -> Self {
        let memory = Memory::new((*memory).clone());
        let vring = Vring::new(memory.clone(), 256).expect("a queue");
        let mut queue = Self {
            memory,
            vring,
            size,
            ready: false,
            enabled: false,
            broken: false,
            added: Vec::new(),
            used: 0,
            kept: false,
            emptied: false,
            call: None,
            wants_interrupts: true,
            owed: false,
        };
        queue.set_call(true);
        queue.start(0);
        queue.enable(true);
        queue
    }

    fn write(&self, at: u64, number: u16) {
        self.memory.memory().write_obj(number.to_le(), GuestAddress(at)).expect("guest memory");
    }

    fn read<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.memory().read_obj(GuestAddress(at)).expect("guest memory")
    }

    fn runs(&self) -> bool {
        self.ready && self.enabled
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(count) => (0..count % 40).for_each(|_| self.add(None)),
            Step::AddBad(head) => self.add(Some(head)),
            Step::Interrupts(wants) => {
                self.wants_interrupts = wants;
                self.write(AVAIL, u16::from(!wants));
                if self.ready {
                    return;
                }
            }
            Step::Serve { most, answers } => self.serve(most, answers),
            Step::Stop => self.stop(),
            Step::Start { base } => {
                self.stop();
                self.start(base);
            }
            Step::Enable(on) => self.enable(on),
            Step::Kick(some) => {
                // The framework starts a queue that is not ready.
                self.vring.set_kick(some.then(|| File::from(event())));
                self.ready = false;
                self.kept = false;
                self.pay();
                self.vring.set_queue_ready(true);
                self.ready = true;
                (self.broken, self.emptied) = (false, false);
            }
            Step::Call(some) => self.set_call(some),
            Step::ReturnKept => self.return_kept(),
            Step::NewRing => {
                self.stop();
                self.empty();
                self.start(0);
            }
            Step::Reset => {
                let enabled = self.enabled;
                self.enable(false);
                self.empty();
                self.emptied = true;
                self.enable(enabled);
                let begins = self.vring.take_fresh();
                assert!(begins || !self.runs(), "a driver that begins is not noticed");
            }
        }
        self.check();
    }

    /// The driver empties its ring.
    fn empty(&mut self) {
        self.write(AVAIL + 2, 0);
        self.write(USED + 2, 0);
        self.added.clear();
        (self.used, self.owed) = (0, false);
    }

    fn add(&mut self, bad: Option<u16>) {
        let size = usize::from(self.size);
        // A driver has no more chains out than the ring holds, and counts them in 16 bits.
        if self.added.len() - self.used >= size || self.added.len() > 60_000 {
            return;
        }
        let place = self.added.len() % size;
        let head = match bad {
            Some(head) if head >= self.size => head,
            _ => u16::try_from(place).expect("a place in the ring"),
        };
        self.write(AVAIL + 4 + 2 * place as u64, head);
        self.added.push((head, None));
        self.write(AVAIL + 2, u16::try_from(self.added.len()).expect("an index"));
    }

    fn serve(&mut self, most: u8, answers: u8) {
        let (mut pass, left) = (Pass::default(), std::cell::Cell::new(u32::from(most)));
        let snapshot = || self.memory.memory().into_inner();
        let mut taken = self.used + usize::from(self.kept);
        let mut failed = false;
        loop {
            let keep_on = || left.get() > 0;
            let chain = match self.vring.take(&mut pass, keep_on, snapshot) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(_) => {
                    failed = true;
                    break;
                }
            };
            assert!(self.ready && self.enabled && !self.broken, "a queue that does not run serves");
            let (head, expected) = self.added.get_mut(taken).expect("a chain that nobody added");
            assert_eq!(chain.head.index, *head, "chains are taken in another order");
            left.set(left.get() - 1);
            let outcome = match answers >> (taken % 4 * 2) & 3 {
                0 => Outcome::Keep,
                1 => Outcome::Written(u32::from(answers)),
                _ => Outcome::Return,
            };
            *expected = Some(match outcome {
                Outcome::Written(len) => len,
                _ => 0,
            });
            self.kept = outcome == Outcome::Keep;
            taken += 1;
            chain.finish(outcome).expect("a ring in guest memory");
        }
        if failed {
            let bad = self.added.get(taken).is_some_and(|(head, _)| *head >= self.size);
            assert!(bad, "a good ring fails");
            (self.broken, self.kept) = (true, false);
        }
        let all = self.runs() && !self.broken && left.get() > 0;
        assert!(!all || taken == self.added.len(), "a chain is left on the ring");
        self.came_back();
        self.pay();
    }

    fn return_kept(&mut self) {
        let kept = self.runs() && !self.broken && self.kept;
        let returned = self.vring.return_kept(|| self.memory.memory().into_inner());
        assert_eq!(returned.expect("a ring in guest memory"), kept);
        if kept {
            self.kept = false;
        }
        self.came_back();
        self.pay();
    }

    /// Looks what is in the used ring.
    fn came_back(&mut self) {
        let index: u16 = u16::from_le(self.read(USED + 2));
        let index = usize::from(index);
        assert!((self.used..=self.added.len()).contains(&index), "used index {index}");
        for place in self.used..index {
            let at = USED + 4 + 8 * (place % usize::from(self.size)) as u64;
            let (id, len): (u32, u32) = (self.read(at), self.read(at + 4));
            let (head, expected) = self.added[place];
            assert_eq!(id, u32::from(head), "another chain came back");
            assert_eq!(Some(len), expected, "with another used length");
            self.owed = true;
        }
        self.used = index;
    }

    /// A moment at which the driver must know.
    fn pay(&mut self) {
        let Some(call) = &self.call else { return };
        let signalled = rustix::io::read(call, &mut [0; 8]).is_ok();
        if self.owed && self.wants_interrupts {
            assert!(signalled, "chains came back and the driver is not notified");
        }
        // One that wants none looks by itself.
        self.owed = false;
    }

    fn stop(&mut self) {
        if self.ready {
            self.vring.set_queue_ready(false);
            self.ready = false;
            self.kept = false;
            self.came_back();
            self.pay();
            let base = usize::from(self.vring.queue_next_avail());
            assert!(base == self.used || self.emptied, "a stopped queue goes on elsewhere");
        }
    }

    fn start(&mut self, base: u16) {
        self.vring.set_queue_size(self.size);
        self.vring.set_queue_next_avail(base);
        self.vring.set_queue_info(TABLE, AVAIL, USED).expect("addresses");
        let used = self.vring.queue_used_idx().expect("a ring");
        self.vring.set_queue_next_used(used);
        self.vring.set_queue_ready(true);
        (self.ready, self.broken, self.kept, self.emptied) = (true, false, false, false);
    }

    fn enable(&mut self, on: bool) {
        self.vring.set_enabled(on);
        if !on {
            self.kept = false;
            self.came_back();
            self.pay();
        } else if self.ready && !self.enabled {
            (self.broken, self.emptied) = (false, false);
        }
        self.enabled = on;
    }

    fn set_call(&mut self, some: bool) {
        let ours = some.then(event);
        let theirs = ours.as_ref().map(|fd| File::from(fd.try_clone().expect("a descriptor")));
        self.vring.set_call(theirs);
        self.call = ours;
        self.pay();
    }

    fn check(&mut self) {
        let before = self.used;
        self.came_back();
        assert_eq!(self.used, before, "a chain came back by itself");
    }

    /// Whatever happened, a queue that is started again serves all that is good.
    fn finish(&mut self) {
        self.stop();
        self.enable(true);
        self.set_call(true);
        self.start(0);
        self.serve(255, 0xaa);
        let bad = self.added.iter().position(|(head, _)| *head >= self.size);
        let good = bad.filter(|at| *at >= self.used).unwrap_or(self.added.len());
        assert_eq!(self.used, good, "a chain never comes back");
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}
