// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real daemon takes the steps, and is held against the reference after each of them.

use std::time::Duration;

use guest_driver::pattern::{self, PAGE_BYTES};
use guest_driver::ram::{Gpa, GuestRam};
use proptest_state_machine::StateMachineTest;
use serde_json::{Value, json};

use crate::calls::{self, Refused};
use crate::clock;
use crate::guest::{Guest, TIMEOUT};
use crate::home::Running;
use crate::memory::{PAGES, PAGES_A_REGION, REGIONS, address};
use crate::model::{Hinting, Home, Named, Reference, Step};
use crate::operator::Operator;
use crate::seen::seen;

/// A daemon, its guest and its operator. In the order in which they go.
pub(crate) struct Daemon {
    guest: Guest,
    operator: Operator,
    running: Running,
}

impl Daemon {
    fn start(reference: &Reference) -> Self {
        let running = Running::start(reference.home);
        let guest = Guest::boot(&running.socket());
        let operator = Operator::new(&running.control());
        Self { guest, operator, running }
    }

    fn reconnect(&mut self) {
        self.guest.reconnect(&self.running.socket());
        self.operator.settle();
    }

    fn kill_over_report(&mut self, spans: &[crate::memory::Span]) -> u32 {
        if matches!(self.running, Running::Kept(_)) {
            self.guest.offer_report(spans);
        }
        if !self.running.replace() {
            self.guest.offer_report(spans);
            self.operator = Operator::new(&self.running.control());
            self.reconnect();
        }
        self.guest.reported()
    }

    /// Takes a step of the guest.
    fn take(&mut self, step: &Step, reference: &Reference) {
        let guest = &mut self.guest;
        let answer = &reference.answer;
        let refusing = |named: &Named| named.refusal.map(Refused::new);
        match step {
            Step::Write { page, generation } => guest.write(*page, *generation),
            Step::Report(named) => {
                let _refusing = refusing(named);
                assert_eq!(guest.report(&named.spans), answer.used, "bytes that are called zero");
            }
            Step::FullCall { call, span } => {
                let used = guest.report_to_full_call(*call, *span);
                assert_eq!(used, answer.used, "bytes that are called zero");
            }
            Step::Inflate(named) => {
                let _refusing = refusing(named);
                assert_eq!(guest.inflate(&named.spans), answer.bits, "pages that are called zero");
            }
            Step::Deflate { spans } => guest.deflate(spans),
            Step::BeginHints => guest.send_command(None),
            Step::Hint(named) => {
                let _refusing = refusing(named);
                guest.hint(&named.spans);
            }
            Step::EndHints => guest.send_command(Some(0)),
            Step::Poison { value } => guest.set_poison(*value),
            Step::Migrate { on } => guest.migrate(*on),
            Step::Unplug { region } => guest.attachment().remove_region(*region).unwrap(),
            Step::Plug { region } => guest.attachment().add_region(*region).unwrap(),
            Step::Seal => guest.seal(),
            Step::Reconnect => self.reconnect(),
            Step::KillOverReport { spans } => {
                let used = self.kill_over_report(spans);
                assert_eq!(used, answer.used, "bytes that are called zero");
            }
            Step::Advance { seconds } => clock::advance(Duration::from_secs((*seconds).into())),
            Step::Weather(weather) => calls::set_weather(*weather),
            step => self.operate(step, reference),
        }
    }

    /// Takes a step of an operator.
    fn operate(&mut self, step: &Step, reference: &Reference) {
        let operator = &mut self.operator;
        let ask = |method, path| operator.ask(method, path, &Value::Null);
        let done = match step {
            Step::Pause => ask("POST", "/v1/pause"),
            Step::Resume => ask("POST", "/v1/resume"),
            Step::Park => operator.park(&mut self.guest, reference.home),
            Step::Unpark => ask("POST", "/v1/unpark"),
            Step::StartHinting => ask("POST", "/v1/hinting/start"),
            Step::StopHinting => ask("POST", "/v1/hinting/stop"),
            Step::Refresh => ask("POST", "/v1/statistics/refresh"),
            Step::Pin { page } => operator.pin("PUT", *page),
            Step::Unpin { page } => operator.pin("DELETE", *page),
            Step::Target { bytes, force } => {
                operator.ask("PUT", "/v1/target", &json!({ "bytes": bytes, "force": force }))
            }
            Step::Interval { seconds } => {
                operator.ask("PUT", "/v1/statistics-interval", &json!({ "seconds": seconds }))
            }
            Step::Look => {
                operator.look(reference);
                return;
            }
            Step::Client(client) => {
                operator.client(*client, reference);
                return;
            }
            _ => unreachable!("a step of the guest"),
        };
        assert_eq!(done, reference.answer.is_done, "{step:?} is done or refused");
    }

    /// What is owed by now, beyond the answer.
    fn expect_owed(&mut self, step: &Step, reference: &Reference) {
        let answer = &reference.answer;
        if matches!(step, Step::EndHints) && answer.tells {
            // The worker returns the chain, and has the event loop tell the driver later: a tenth of a second.
            // Clients of the control socket have timers, too.
            clock::wait_for_timer(Duration::from_millis(50)..=Duration::from_millis(100));
            clock::advance(Duration::from_secs(1));
        }
        if answer.polls {
            self.guest.give_statistics();
        } else if matches!(step, Step::Advance { .. }) && !reference.asks_again {
            self.operator.settle();
            assert!(!self.guest.is_asked_for_statistics(), "statistics that are not due");
        }
        if answer.tells {
            assert!(self.guest.is_told(TIMEOUT), "the driver is not told of the change");
            let config = self.guest.config();
            assert_eq!(u64::from(config.num_pages) * 4096, reference.target_read(), "the target");
            let runs = config.free_page_hint_cmd_id > 1;
            assert_eq!(runs, matches!(reference.hinting, Hinting::Round { .. }), "the round");
        }
    }
}

impl StateMachineTest for Daemon {
    type SystemUnderTest = Self;
    type Reference = Reference;

    fn init_test(reference: &Reference) -> Self {
        Self::start(reference)
    }

    fn apply(mut daemon: Self, reference: &Reference, step: Step) -> Self {
        seen(&step);
        if reference.answer.tells {
            daemon.guest.forget_changes();
        }
        daemon.take(&step, reference);
        daemon.expect_owed(&step, reference);
        if reference.home == Home::Here {
            clock::wait_for_interval(reference.interval);
        }
        daemon
    }

    fn check_invariants(state: &Self, reference: &Reference) {
        let mut found = [0; PAGES_A_REGION * PAGE_BYTES];
        for region in 0..REGIONS {
            let first = region * PAGES_A_REGION;
            state.guest.ram.read(Gpa(address(first)), &mut found).unwrap();
            for (at, found) in found.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
                let page = first + at;
                match reference.written.get(&page) {
                    Some(generation) => {
                        let expected = pattern::page(Gpa(address(page)), *generation);
                        assert!(*found == expected, "page {page} is not as it was written");
                    }
                    None => assert!(found == &[0; PAGE_BYTES], "page {page} was kept"),
                }
            }
        }
        debug_assert!(reference.written.keys().all(|page| *page < PAGES));
    }
}
