// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::super::chain::tests::{NEXT, TABLE, WRITE, memory, write};
use super::super::hinting::HintingState;
use super::super::{Action, Outcome, RestoreError, SavedBalloon};
use super::*;
use crate::device::chain::ChainHead;
use crate::discard::GuestRange;
use crate::metrics::SkipReason;
use vm_memory::{Bytes, GuestAddress};

const STATISTICS: u64 = Feature::StatsVq.mask();
const HINTS: u64 = Feature::FreePageHint.mask();
const REPORTING: u64 = Feature::PageReporting.mask();
const POISON: u64 = Feature::PagePoison.mask();

/// Where a chain's first buffer lies.
const BUFFER: u64 = 0x8000;

fn everything() -> Balloon {
    let options = DeviceOptions {
        statistics: true,
        free_page_hints: true,
        deflate_on_oom: true,
        must_tell_host: true,
        ..DeviceOptions::default()
    };
    options.check().unwrap();
    Balloon::new(options, Arc::default())
}

/// Serves a chain of one buffer with these bytes, or of one page if there are none: what is
/// handed on, and what is to become of the chain.
fn serve(balloon: &Balloon, role: QueueRole, bytes: &[u8]) -> (Option<Vec<GuestRange>>, Outcome) {
    let memory = memory();
    memory.write_slice(bytes, GuestAddress(BUFFER)).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    let page = (BUFFER, 0x1000, WRITE, 0);
    write(&memory, TABLE, &[if len == 0 { page } else { (BUFFER, len, 0, 0) }]);
    let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
    let request = balloon.collect(role, head, &memory);
    let handed = (request.action != Action::Nothing).then(|| match request.action {
        Action::ReleaseAll => Vec::new(),
        _ => request.contents.ranges.clone(),
    });
    (handed, balloon.finish(request, &memory))
}

/// Starts a round and returns its ID.
fn start_hinting(balloon: &Balloon) -> u32 {
    balloon.start_hinting().unwrap();
    let id = balloon.config().free_page_hint_cmd_id();
    assert!(id >= 2);
    id
}

fn page(gpa: u64) -> Option<Vec<GuestRange>> {
    Some(vec![GuestRange::new(gpa, 0x1000).unwrap()])
}

#[test]
fn reported_pages_unless_forbidden_are_discarded() {
    let reported = |acked, poison: Option<u32>| {
        let balloon = Balloon::new(DeviceOptions::default(), Arc::default());
        if let Some(poison) = poison {
            balloon.config().write(12, &poison.to_le_bytes(), false);
        }
        balloon.set_acked_features(acked);
        let (handed, outcome) = serve(&balloon, QueueRole::Reporting, &[]);
        assert_eq!(outcome, Outcome::Return);
        handed
    };
    assert_eq!(reported(REPORTING, Some(0)), page(BUFFER));
    assert_eq!(reported(REPORTING | POISON, Some(0)), page(BUFFER));
    // Not acked, so the field means nothing.
    assert_eq!(reported(REPORTING, Some(7)), page(BUFFER));
    assert_eq!(reported(REPORTING | POISON, Some(7)), None);
    // Of a driver that may have outlived the daemon to which it told its value.
    assert_eq!(reported(REPORTING | POISON, None), None);
    assert_eq!(reported(REPORTING, None), page(BUFFER));
    assert_eq!(reported(0, Some(0)), None);
}

#[test]
fn inflated_pages_are_discarded_and_deflated_never() {
    let balloon = everything();
    balloon.config().write(12, &7_u32.to_le_bytes(), false);
    balloon.set_acked_features(POISON);
    let (handed, outcome) = serve(&balloon, QueueRole::Inflate, &3_u32.to_le_bytes());
    assert_eq!((handed, outcome), (page(0x3000), Outcome::Return));
    let (handed, outcome) = serve(&balloon, QueueRole::Deflate, &3_u32.to_le_bytes());
    assert_eq!((handed, outcome), (None, Outcome::Return));
}

#[test]
fn an_ambiguous_queue_discards_nothing() {
    let balloon = everything();
    balloon.set_acked_features(HINTS | REPORTING);
    assert_eq!(balloon.role(3), Some(QueueRole::Ambiguous));
    assert_eq!(serve(&balloon, QueueRole::Ambiguous, &[]), (None, Outcome::Return));
    let snapshot = balloon.counters.snapshot();
    assert_eq!(snapshot.skipped_bytes(SkipReason::AmbiguousQueue), 0x1000);
}

#[test]
fn a_statistics_buffer_is_read_and_kept() {
    let balloon = everything();
    let empty = serve(&balloon, QueueRole::Statistics, &[0; 20]);
    assert_eq!(empty, (None, Outcome::Keep));
    assert!(balloon.statistics().is_none());
    let bytes = [&4_u16.to_le_bytes()[..], &99_u64.to_le_bytes()].concat();
    assert_eq!(serve(&balloon, QueueRole::Statistics, &bytes), (None, Outcome::Keep));
    let sample = balloon.statistics().unwrap();
    assert_eq!(sample.values.free_bytes, Some(99));
    assert!(sample.age() < Duration::from_secs(600));
    // What tells nothing leaves the last sample.
    serve(&balloon, QueueRole::Statistics, &[1; 9]);
    assert_eq!(balloon.statistics().unwrap().at, sample.at);
}

#[test]
fn hints_during_a_round_are_discarded_and_done_sent() {
    let balloon = everything();
    assert_eq!(balloon.start_hinting(), Err(HintingError::NotAcked));
    balloon.set_acked_features(HINTS | STATISTICS);
    assert_eq!(serve(&balloon, QueueRole::Hinting, &[]).0, None);
    let id = start_hinting(&balloon);
    assert!(!balloon.take_config_changed(), "the caller knows");
    serve(&balloon, QueueRole::Hinting, &id.to_le_bytes());
    assert_eq!(serve(&balloon, QueueRole::Hinting, &[]), (page(BUFFER), Outcome::Return));
    serve(&balloon, QueueRole::Hinting, &0_u32.to_le_bytes());
    assert!(balloon.take_config_changed());
    assert!(!balloon.take_config_changed());
    assert_eq!(balloon.config().free_page_hint_cmd_id(), 1);
    let status = balloon.hinting();
    assert_eq!((status.state, status.ranges), (HintingState::Done, 1));
    assert_eq!(status.bytes, 0x1000);
    assert_eq!(balloon.stop_hinting(), Err(HintingError::NotRunning));
    let plain = Balloon::new(DeviceOptions::default(), Arc::default());
    assert_eq!(plain.start_hinting(), Err(HintingError::NotOffered));
}

#[test]
fn round_stopped_during_discard_is_done_after_it() {
    let balloon = everything();
    balloon.set_acked_features(HINTS | STATISTICS);
    let id = start_hinting(&balloon);
    serve(&balloon, QueueRole::Hinting, &id.to_le_bytes());
    let memory = memory();
    write(&memory, TABLE, &[(BUFFER, 0x1000, WRITE, 0)]);
    let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
    let request = balloon.collect(QueueRole::Hinting, head, &memory);
    assert_eq!(request.action, Action::Discard);
    // Another thread stops the round during the discard, and does not wait.
    balloon.stop_hinting().unwrap();
    assert_eq!(balloon.config().free_page_hint_cmd_id(), 0);
    balloon.finish(request, &memory);
    assert_eq!(balloon.config().free_page_hint_cmd_id(), 1);
    assert!(balloon.take_config_changed());
}

#[test]
fn driver_reads_the_target_and_writes_actual() {
    let options = DeviceOptions { target_bytes: 1 << 20, ..DeviceOptions::default() };
    let balloon = Balloon::new(options, Arc::default());
    assert_eq!(balloon.config().read(0, 4), 256_u32.to_le_bytes());
    assert_eq!(balloon.set_target(1, false), Err(TargetError::NotPages(1)));
    assert_eq!(balloon.target_bytes(), 1 << 20);
    balloon.set_target(2 << 20, false).unwrap();
    assert_eq!(balloon.config().num_pages(), 512);
    assert_eq!(balloon.actual_bytes(), None);
    balloon.config().write(4, &300_u32.to_le_bytes(), false);
    assert_eq!(balloon.actual_bytes(), Some(300 * 4096));
    assert_eq!(balloon.target_bytes(), 2 << 20);
}

#[test]
fn reset_keeps_operator_settings_not_driver_state() {
    let balloon = everything();
    let interval = Duration::from_secs(5);
    balloon.set_target(1 << 20, false).unwrap();
    balloon.set_statistics_interval(interval).unwrap();
    balloon.set_acked_features(STATISTICS | HINTS | REPORTING | POISON);
    balloon.config().write(0, &[7; 16], false);
    balloon.start_hinting().unwrap();
    serve(&balloon, QueueRole::Statistics, &[4, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(balloon.statistics().is_some());
    balloon.reset();
    assert_eq!(balloon.acked_features(), None);
    assert_eq!((balloon.target_bytes(), balloon.statistics_interval()), (1 << 20, interval));
    let config = *balloon.config();
    assert_eq!((config.actual(), config.poison_val()), (0, 0));
    assert!(config.poison_is_known());
    assert_eq!(config.free_page_hint_cmd_id(), 0);
    assert!(balloon.statistics().is_none());
    assert_eq!(balloon.hinting().state, HintingState::Stopped);
}

#[test]
fn an_interval_needs_statistics() {
    let plain = Balloon::new(DeviceOptions::default(), Arc::default());
    let second = Duration::from_secs(1);
    assert_eq!(plain.set_statistics_interval(second), Err(IntervalError::NotOffered));
    assert_eq!(plain.statistics_interval(), Duration::ZERO);
}

#[test]
fn a_device_goes_on_elsewhere_as_it_was() {
    let here = everything();
    here.set_target(3 << 20, false).unwrap();
    here.set_statistics_interval(Duration::from_secs(2)).unwrap();
    here.config().write(4, &[1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], false);
    here.set_acked_features(STATISTICS | HINTS | REPORTING | POISON | 1 << 32);
    let saved = here.save();
    let json = serde_json::to_string(&saved).unwrap();
    let there = everything();
    there.restore(serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(there.save(), saved);
    assert_eq!(*there.config(), *here.config());
    assert!(!there.take_config_changed());
    // A reclaim squeezed more into it, and ended there.
    there.restore(SavedBalloon { actual: Some(769), ..saved }).unwrap();
    assert!(there.take_config_changed());

    // A round cannot go on elsewhere: the driver is to have its pages back.
    let id = start_hinting(&here);
    there.restore(here.save()).unwrap();
    assert_eq!(there.config().free_page_hint_cmd_id(), 1);
    assert!(there.take_config_changed());
    // Nor may its ID come again, even if it is long over.
    here.stop_hinting().unwrap();
    there.restore(here.save()).unwrap();
    assert_eq!(start_hinting(&there), id + 1);
}

#[test]
fn a_device_that_offers_less_does_not_go_on() {
    let less = Balloon::new(DeviceOptions::default(), Arc::default());
    let before = less.save();
    let here = everything();
    here.set_acked_features(STATISTICS | REPORTING);
    let missing = STATISTICS;
    let error = RestoreError::NotOffered { acked: STATISTICS | REPORTING, missing };
    assert_eq!(less.restore(here.save()), Err(error));
    let interval = Duration::from_nanos(1);
    let saved = SavedBalloon { statistics_interval: interval, ..here.save() };
    assert!(matches!(here.restore(saved), Err(RestoreError::Interval(_))));
    assert_eq!(less.save(), before);
    // What the driver did not ack it does not miss.
    here.set_acked_features(REPORTING);
    less.restore(SavedBalloon { statistics_interval: interval, ..here.save() }).unwrap();
    assert_eq!(less.statistics_interval(), Duration::ZERO);
}

#[test]
fn a_chain_of_any_queue_may_break_off() {
    let balloon = everything();
    balloon.set_acked_features(u64::MAX);
    balloon.start_hinting().unwrap();
    let memory = memory();
    write(&memory, TABLE, &[(BUFFER, 0x1000, WRITE | NEXT, 9)]);
    let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
    for queue in 0..features::NUM_QUEUES {
        let role = balloon.role(queue).unwrap();
        let request = balloon.collect(role, head, &memory);
        let idle = matches!(request.action, Action::Nothing | Action::ReleaseAll);
        assert!(idle || request.contents.ranges.is_empty(), "{role:?}");
        balloon.finish(request, &memory);
    }
}

/// The total of a guest that was squeezed when it told it, and has all of its memory again.
#[test]
fn memory_after_deflation_counts_balloon_of_sample() {
    const MIB: u64 = 1 << 20;
    let balloon = Balloon::new(DeviceOptions::default(), Arc::default());
    balloon.set_memory_bytes(2048 * MIB);
    balloon.set_acked_features(0);
    balloon.write_config(4, &0_u32.to_le_bytes(), true);
    let values = crate::device::statistics::Statistics {
        total_bytes: Some(512 * MIB),
        ..Default::default()
    };
    let at = std::time::Instant::now();
    let sample = Sample { values, unknown_tags: 0, at, balloon_bytes: Some(1024 * MIB) };
    lock(&balloon.statistics).sample = Some(sample);
    assert_eq!(balloon.memory_bytes(), Some(1536 * MIB));
    lock(&balloon.statistics).sample = Some(Sample { balloon_bytes: None, ..sample });
    assert_eq!(balloon.memory_bytes(), Some(512 * MIB), "what is in it now, if it was not known");
}
