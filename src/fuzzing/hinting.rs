// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rounds of hinting: what the operator asks for, what the driver sends, and resets in between.
//!
//! Hints count only under the command that the device asked for last, and only until `STOP`. `DONE` comes
//! once no chain is in progress, and no command of a round comes twice.

use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::GuestAddress;

use super::guest::Guest;
use super::model::{self, Buffer, Descriptor, OTHER_TABLE, Place, TABLE, write_table};
use crate::device::chain::ChainHead;
use crate::device::{Action, Balloon, DeviceOptions, HintingState, Outcome, QueueRole};
use crate::metrics::Counters;

/// What happens, in this order.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    first_command: Option<u32>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Start,
    Stop,
    Reset,
    /// Another daemon goes on with this device.
    Restore,
    Chain(Chain),
}

#[derive(Arbitrary, Debug)]
struct Chain {
    parts: Vec<Part>,
    /// In place of the parts.
    table: Option<Vec<Descriptor>>,
    /// The operator interferes while the pages of the chain are discarded.
    meanwhile: Meanwhile,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Stop,
    StopAndStart,
    Reset,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Part {
    /// The command that the configuration space asks for.
    Asked,
    /// The one that this many rounds ago was asked for.
    Earlier(u8),
    StopCommand,
    Command(u32),
    Hint(Place, u32),
}

/// Where the commands lie, sixteen bytes apart.
const COMMANDS: u64 = 9 * 4096;
const STOP: u32 = 0;
const DONE: u32 = 1;
const FEATURES: u64 = 1 << 1 | 1 << 3;
const HINTING: usize = 3;

thread_local! {
    static GUEST: Guest = Guest::new();
}

/// The rounds as the specification tells them.
#[derive(Default)]
struct Rounds {
    /// What the configuration space asks for.
    asked: u32,
    /// What the driver sent last.
    driver: Option<u32>,
    running: bool,
    /// All that were asked for since the last restore.
    all: Vec<u32>,
}

pub(crate) fn run(input: Input) {
    let options =
        DeviceOptions { statistics: true, free_page_hints: true, ..DeviceOptions::default() };
    let new = || Balloon::new(options, Arc::<Counters>::default());
    let mut balloon = new();
    if let Some(next) = input.first_command {
        let saved = crate::device::SavedBalloon { next_hint_cmd_id: next, ..balloon.save() };
        balloon.restore(saved).expect("a state of this device");
    }
    balloon.set_acked_features(FEATURES);
    assert_eq!(balloon.role(HINTING), Some(QueueRole::Hinting));
    let mut rounds = Rounds { asked: balloon.hinting().requested_id, ..Rounds::default() };
    GUEST.with(|guest| {
        for step in input.steps.iter().take(24) {
            match step {
                Step::Start => rounds.start(&balloon),
                Step::Stop => rounds.stop(&balloon, false),
                Step::Reset => {
                    balloon.reset();
                    balloon.set_acked_features(FEATURES);
                    rounds = Rounds { all: std::mem::take(&mut rounds.all), ..Rounds::default() };
                }
                Step::Restore => {
                    let next = new();
                    next.restore(balloon.save()).expect("a state of this device");
                    balloon = next;
                    let asked = if rounds.asked == STOP { STOP } else { DONE };
                    let all = std::mem::take(&mut rounds.all);
                    rounds = Rounds { asked, all, ..Rounds::default() };
                }
                Step::Chain(chain) => rounds.send(guest, &balloon, chain),
            }
            rounds.check(&balloon);
        }
    });
}

impl Rounds {
    fn start(&mut self, balloon: &Balloon) {
        assert_eq!(balloon.start_hinting().is_ok(), !self.running, "a round begins, or does not");
        if !self.running {
            self.running = true;
            self.asked = balloon.config().free_page_hint_cmd_id();
            assert!(self.asked > DONE, "{} asks for no hints", self.asked);
            assert!(!self.all.contains(&self.asked), "command {} comes twice", self.asked);
            self.all.push(self.asked);
        }
    }

    fn stop(&mut self, balloon: &Balloon, in_progress: bool) {
        assert_eq!(balloon.stop_hinting().is_ok(), self.running, "a round ends, or does not");
        if std::mem::take(&mut self.running) {
            self.asked = if in_progress { STOP } else { DONE };
        }
    }

    fn check(&self, balloon: &Balloon) {
        let status = balloon.hinting();
        assert_eq!(status.requested_id, self.asked);
        assert_eq!(balloon.config().free_page_hint_cmd_id(), self.asked);
        assert_eq!(status.state == HintingState::Running, self.running);
        assert_eq!(status.driver_id, self.driver);
    }

    fn send(&mut self, guest: &Guest, balloon: &Balloon, chain: &Chain) {
        guest.clear();
        match &chain.table {
            Some(table) => {
                write_table(guest, TABLE, table);
                write_table(guest, OTHER_TABLE, table);
            }
            None => self.write(guest, &chain.parts),
        }
        let queue_size = 32;
        let head = ChainHead { table: GuestAddress(TABLE), queue_size, index: 0 };
        let image = guest.image();
        let buffers = model::walk(&image, TABLE, queue_size, 0);
        let mut request = balloon.collect(QueueRole::Hinting, head, &guest.memory);

        let (before, asked) = (self.driver, self.asked);
        let (mut driver, mut ended, mut hints) = (before, false, Vec::new());
        for Buffer { gpa, len, writable } in buffers.unwrap_or_default() {
            let wanted = asked > DONE && driver == Some(asked);
            if writable {
                if wanted && len > 0 && gpa.checked_add(len.into()).is_some() {
                    hints.push((gpa, u64::from(len)));
                }
            } else if let (4, Some(bytes)) = (len, image.bytes(gpa)) {
                let command = u32::from_le_bytes(bytes);
                ended |= wanted && command == STOP;
                driver = Some(command);
            }
        }
        let ranges = std::mem::take(&mut request.contents.ranges);
        let got: Vec<_> = ranges.iter().map(|range| (range.start(), range.len())).collect();
        assert_eq!(got, hints, "other hints than were wanted");
        assert_eq!(request.action == Action::Discard, !hints.is_empty());

        let was_running = self.running;
        match chain.meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Stop => self.stop(balloon, true),
            Meanwhile::StopAndStart => {
                self.stop(balloon, true);
                self.start(balloon);
            }
            Meanwhile::Reset => {
                balloon.reset();
                balloon.set_acked_features(FEATURES);
                *self = Self { all: std::mem::take(&mut self.all), ..Self::default() };
            }
        }
        // A driver must not use a page of which the discard is in progress.
        let says = balloon.config().free_page_hint_cmd_id();
        assert_eq!(says, self.asked, "another command with a chain in progress");
        assert_eq!(balloon.finish(request, &guest.memory), Outcome::Return);
        self.driver = driver;
        if self.asked == asked && ended {
            assert!(self.running);
            (self.running, self.asked) = (false, DONE);
        } else if chain.meanwhile == Meanwhile::Stop && was_running {
            self.asked = DONE;
        }
    }

    fn write(&self, guest: &Guest, parts: &[Part]) {
        let count = parts.len().min(16);
        let mut table = Vec::new();
        for (i, part) in parts.iter().take(count).enumerate() {
            let command = match part {
                Part::Asked => Some(self.asked),
                Part::Earlier(back) => {
                    Some(self.all.iter().rev().nth(usize::from(*back)).copied().unwrap_or(2))
                }
                Part::StopCommand => Some(STOP),
                Part::Command(id) => Some(*id),
                Part::Hint(..) => None,
            };
            let at = COMMANDS + 16 * i as u64;
            guest.write(at, &command.unwrap_or(0).to_le_bytes());
            let (gpa, len, write) = match part {
                Part::Hint(at, len) => (at.gpa(), *len, 2),
                _ => (at, 4, 0),
            };
            let next = u16::from(i + 1 < count);
            table.extend_from_slice(&gpa.to_le_bytes());
            table.extend_from_slice(&len.to_le_bytes());
            table.extend_from_slice(&(write | next).to_le_bytes());
            table.extend_from_slice(&u16::try_from(i + 1).unwrap_or(0).to_le_bytes());
        }
        guest.write(TABLE, &table);
    }
}
