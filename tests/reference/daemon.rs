// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real daemon, with a frontend that does what the steps say.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use proptest_state_machine::StateMachineTest;
use serde_json::json;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment, DirtyLog};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

use crate::model::{PIECES, PIECES_A_REGION, Reference, Step, region_of};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
/// Bytes of a piece, several pages.
const PIECE: u64 = 8 << 10;
const TIMEOUT: Duration = Duration::from_secs(20);
/// Where the pieces of each region begin: those of the first end where those of the second begin.
const STARTS: [u64; 3] = [16 * MIB - PIECES_A_REGION as u64 * PIECE, 16 * MIB, 32 * MIB];
const END: Gpa = Gpa(48 * MIB);

/// A daemon and its guest.
pub(crate) struct Daemon {
    process: DaemonProcess,
    /// None for a moment only.
    guest: Option<Attachment>,
    ram: Ram,
}

fn range(piece: usize) -> GpaRange {
    let in_region = u64::try_from(piece % PIECES_A_REGION).unwrap();
    GpaRange::new(Gpa(STARTS[region_of(piece)] + in_region * PIECE), PIECE).unwrap()
}

impl Daemon {
    fn guest(&mut self) -> &mut Attachment {
        self.guest.as_mut().unwrap()
    }

    fn tell(&self, method: &str, path: &str, body: &str) {
        let control = ControlSocket::new(&self.process.control_socket(), TIMEOUT);
        control.done(method, path, body).unwrap();
    }

    fn pin(&self, method: &str, piece: usize) {
        let range = range(piece);
        let body = json!({ "address": range.start().0, "bytes": range.len() });
        self.tell(method, "/v1/pins", &body.to_string());
    }

    fn reconnect(&mut self) {
        let guest = self.guest.take().unwrap().reconnect(&self.process.socket());
        self.guest = Some(guest.unwrap());
    }

    fn report(&mut self, pieces: &[usize]) -> u16 {
        let queue = self.guest().reporting_queue().unwrap();
        let buffer = |piece: &usize| {
            let range = range(*piece);
            Buffer::writable(range.start(), u32::try_from(range.len()).unwrap())
        };
        let chain: Vec<Buffer> = pieces.iter().map(buffer).collect();
        self.guest().ring(queue).unwrap().add_chain(&chain).unwrap();
        self.guest().publish(queue).unwrap();
        queue
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write { piece, generation } => {
                self.ram.write_pattern(range(piece), generation).unwrap();
            }
            Step::Report { pieces } => {
                let queue = self.report(&pieces);
                // It is returned, and the driver is notified of it.
                assert!(self.guest().wait_used(queue, TIMEOUT).unwrap().is_some());
            }
            Step::KillOverReport { piece } => {
                let queue = self.report(&[piece]);
                self.process.kill().unwrap();
                let args: [&str; 0] = [];
                self.process = self.process.successor(Path::new(BINARY), args).unwrap();
                self.reconnect();
                assert!(self.guest().wait_used(queue, TIMEOUT).unwrap().is_some());
            }
            Step::Pause => self.tell("POST", "/v1/pause", ""),
            Step::Resume => self.tell("POST", "/v1/resume", ""),
            Step::Pin { piece } => self.pin("PUT", piece),
            Step::Unpin { piece } => self.pin("DELETE", piece),
            Step::Migrate { on } => {
                if on {
                    self.guest().set_log(&DirtyLog::new(END).unwrap()).unwrap();
                }
                self.guest().set_logging(on).unwrap();
            }
            Step::Unplug { region } => self.guest().remove_region(region).unwrap(),
            Step::Plug { region } => self.guest().add_region(region).unwrap(),
            Step::Reconnect => self.reconnect(),
        }
    }
}

impl StateMachineTest for Daemon {
    type SystemUnderTest = Self;
    type Reference = Reference;

    fn init_test(_: &Reference) -> Self {
        let args: [&str; 0] = [];
        let process = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let guest = Attachment::connect(&process.socket(), &ram, AttachOptions::default()).unwrap();
        Self { process, guest: Some(guest), ram }
    }

    fn apply(mut daemon: Self, _: &Reference, step: Step) -> Self {
        daemon.take(step);
        daemon
    }

    fn check_invariants(state: &Self, reference: &Reference) {
        for piece in 0..PIECES {
            match reference.written.get(&piece) {
                Some(generation) => state.ram.verify_pattern(range(piece), *generation).unwrap(),
                None => assert!(state.ram.is_zero(range(piece)).unwrap(), "piece {piece} was kept"),
            }
        }
    }
}
