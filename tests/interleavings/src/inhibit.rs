// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pauses and pins of the control thread against discarding calls of the worker.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use crate::discard::inhibit::{Cause, Inhibit, Ticket};
use crate::discard::ranges::GuestRange;
use crate::explore;
use crate::wake::Wakes;

/// Guest memory: a discard writes it, and so does the one for which it must stay.
struct Guest {
    inhibit: Inhibit,
    memory: UnsafeCell<()>,
}

impl Guest {
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "loom's cell is what shows that it is shared well"
    )]
    fn new(operators: &Arc<Wakes>) -> Arc<Self> {
        let inhibit = Inhibit::new(Arc::clone(operators));
        Arc::new(Self { inhibit, memory: UnsafeCell::new(()) })
    }

    /// Two discarding calls of the worker, as `Snapshot::discard_in` makes them.
    fn discards(&self) {
        for _ in 0..2 {
            let Ok(permit) = self.inhibit.permit() else { continue };
            if permit.pinned().is_empty() {
                self.memory.with_mut(drop);
            }
        }
    }

    /// What was answered: nothing discards the memory.
    fn stays(&self) {
        self.memory.with_mut(drop);
    }
}

fn against_discards(
    control: impl Fn(&Guest, &Wakes) + Send + Sync + 'static,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        let operators = Arc::new(Wakes::default());
        let guest = Guest::new(&operators);
        let worker = thread::spawn({
            let guest = Arc::clone(&guest);
            move || guest.discards()
        });
        control(&guest, &operators);
        guest.stays();
        worker.join().unwrap();
    }
}

fn page() -> GuestRange {
    GuestRange::new(0, 4096).unwrap()
}

/// The frontend's thread waits for a migration to begin. Returns the number of interleavings.
pub fn pause_waits_for_the_call_under_way() -> usize {
    explore(against_discards(|guest, _| {
        guest.inhibit.wait(guest.inhibit.forbid(Cause::Migration));
    }))
}

/// The main thread answers when an event says that it can. Returns the number of interleavings.
pub fn pause_is_answered_by_event() -> usize {
    explore(against_discards(|guest, operators| {
        answered(guest, operators, guest.inhibit.forbid(Cause::Operator));
    }))
}

/// The same for a pin. Returns the number of interleavings.
pub fn pin_is_answered_by_event() -> usize {
    explore(against_discards(|guest, operators| {
        answered(guest, operators, guest.inhibit.pin(page()).unwrap());
    }))
}

/// A pause is lifted while another cause holds. Returns the number of interleavings.
pub fn pause_of_two_causes_outlives_one() -> usize {
    explore(against_discards(|guest, _| {
        let ticket = guest.inhibit.forbid(Cause::Migration);
        let _ = guest.inhibit.forbid(Cause::Operator);
        guest.inhibit.lift(Cause::Operator);
        guest.inhibit.wait(ticket);
    }))
}

/// As `control::api::waits::once_over` and the event loop do it.
fn answered(guest: &Guest, operators: &Wakes, ticket: Ticket) {
    while !guest.inhibit.is_over(ticket) {
        operators.wait();
    }
}
