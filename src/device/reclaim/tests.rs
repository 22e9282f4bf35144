// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 2048 * MIB;
const KEEP: u64 = 256 * MIB;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A reclaim and the guest that it looks at.
struct Guest {
    began: Instant,
    reclaim: Reclaim,
    seen: Seen,
}

impl Guest {
    fn new() -> Self {
        let began = Instant::now();
        let seen = Seen {
            now: began,
            sample: None,
            actual_bytes: Some(0),
            base_bytes: 0,
            memory_bytes: Some(MEMORY),
            squeeze_bytes: None,
            obstacle: None,
        };
        Self { began, reclaim: Reclaim::new(began, Some(KEEP), TIMEOUT), seen }
    }

    /// Goes on at `ms`, with the orders of the last step carried out.
    fn at(&mut self, ms: u64) -> Orders {
        self.seen.now = self.began + Duration::from_millis(ms);
        let orders = self.reclaim.step(&self.seen);
        self.seen.squeeze_bytes = orders.squeeze_bytes;
        orders
    }

    /// The same with new statistics, and `actual` bytes in the balloon.
    fn tells(&mut self, ms: u64, actual: u64, values: Statistics) -> Orders {
        let at = self.began + Duration::from_millis(ms);
        self.seen.sample = Some(Sample { values, unknown_tags: 0, at, balloon_bytes: None });
        self.seen.actual_bytes = Some(actual);
        self.at(ms)
    }

    /// A guest that is being squeezed to 1280 MiB.
    fn squeezed() -> Self {
        let mut guest = Self::new();
        assert!(guest.at(0).ask);
        let orders = guest.tells(10, 0, available(1536));
        assert_eq!(orders.squeeze_bytes, Some(1280 * MIB));
        guest
    }
}

fn available(mib: u64) -> Statistics {
    Statistics {
        available_bytes: Some(mib * MIB),
        swapped_in_bytes: Some(7 * MIB),
        swapped_out_bytes: Some(9 * MIB),
        major_faults: Some(1000),
        oom_kills: Some(3),
        ..Statistics::default()
    }
}

#[test]
fn step_healthy_guest_squeezes_and_lets_go() {
    let mut guest = Guest::squeezed();
    assert_eq!(guest.tells(200, 640 * MIB, available(896)).squeeze_bytes, Some(1280 * MIB));
    assert_eq!(guest.tells(400, 1280 * MIB, available(256)), Orders::default());
    assert_eq!(guest.reclaim.end, Some(End::Reached));
    assert_eq!(guest.tells(500, 640 * MIB, available(896)), Orders::default());
    assert!(guest.tells(600, 0, available(1536)).over);
    assert!(guest.reclaim.is_confirmed);
    assert_eq!(guest.reclaim.squeezed_bytes(), 1280 * MIB);
    assert_eq!(guest.reclaim.took(guest.seen.now), Duration::from_millis(600));
    assert_eq!(guest.reclaim.letting_go_took(), Some(Duration::from_millis(200)));
}

#[test]
fn step_old_sample_is_no_answer() {
    let mut guest = Guest::new();
    guest.seen.sample = Some(Sample {
        values: available(1536),
        unknown_tags: 0,
        at: guest.began - Duration::from_millis(1),
        balloon_bytes: None,
    });
    assert_eq!(guest.at(0), Orders { ask: true, ..Orders::default() });
    assert_eq!(guest.at(20), Orders::default());
    assert!(guest.at(1000).ask, "the request may be lost");
    assert!(guest.at(5000).over, "nothing is in the balloon");
    assert_eq!(guest.reclaim.end, Some(End::Silent));
}

#[test]
fn step_each_sign_of_pressure_lets_go() {
    let healthy = available(900);
    let grown = |field: Option<u64>, by: u64| field.map(|value| value + by);
    for (values, pressure) in [
        (Statistics { oom_kills: Some(4), ..healthy }, Pressure::OomKill),
        (
            Statistics { swapped_out_bytes: grown(healthy.swapped_out_bytes, MIB + 1), ..healthy },
            Pressure::SwapOut,
        ),
        (
            Statistics { swapped_in_bytes: grown(healthy.swapped_in_bytes, MIB + 1), ..healthy },
            Pressure::SwapIn,
        ),
        (Statistics { major_faults: Some(1257), ..healthy }, Pressure::MajorFaults),
        (available(127), Pressure::Available),
    ] {
        let mut guest = Guest::squeezed();
        guest.tells(200, 640 * MIB, healthy);
        assert_eq!(guest.tells(300, 700 * MIB, values), Orders::default(), "{pressure:?}");
        assert_eq!(guest.reclaim.end, Some(End::Pressure(pressure)));
    }
    // What is spared, and a boot's own counts, are none.
    let mut guest = Guest::squeezed();
    let spared = Statistics {
        swapped_out_bytes: grown(healthy.swapped_out_bytes, MIB),
        swapped_in_bytes: grown(healthy.swapped_in_bytes, MIB),
        major_faults: Some(1256),
        ..available(128)
    };
    assert!(guest.tells(300, 700 * MIB, spared).squeeze_bytes.is_some());
    assert_eq!(guest.tells(320, 650 * MIB, spared), Orders::default());
    assert_eq!(guest.reclaim.end, Some(End::Pressure(Pressure::Deflated)));
}

#[test]
fn step_guest_that_stalls_is_exhausted() {
    let mut guest = Guest::squeezed();
    for ms in (100..3100).step_by(100) {
        assert!(guest.tells(ms, 100 * MIB, available(900)).squeeze_bytes.is_some(), "{ms}");
    }
    let let_go = (3100..)
        .step_by(100)
        .find(|ms| guest.tells(*ms, 100 * MIB, available(900)).squeeze_bytes.is_none());
    assert_eq!((guest.reclaim.end, let_go), (Some(End::Exhausted), Some(3100)));
    assert_eq!(guest.reclaim.squeezed_bytes(), 100 * MIB);
}

#[test]
fn step_silent_squeezed_guest_is_let_go() {
    let mut guest = Guest::squeezed();
    for (ms, mib) in [(1000, 100), (3000, 200), (5000, 300)] {
        guest.seen.actual_bytes = Some(mib * MIB);
        assert!(guest.at(ms).squeeze_bytes.is_some(), "{ms}");
    }
    assert_eq!(guest.at(5010), Orders::default());
    assert_eq!(guest.reclaim.end, Some(End::Silent));
    assert!(!guest.at(15_000).over);
    assert!(guest.at(15_010).over, "it is not waited for without end");
    assert!(!guest.reclaim.is_confirmed);
}

/// A guest that is stopped gives nothing, and is not exhausted.
#[test]
fn step_stopped_guest_is_silent() {
    let mut guest = Guest::squeezed();
    guest.tells(1000, 100 * MIB, available(900));
    for ms in (1020..6000).step_by(20) {
        assert!(guest.at(ms).squeeze_bytes.is_some(), "{ms}");
    }
    assert_eq!(guest.at(6000).squeeze_bytes, None);
    assert_eq!(guest.reclaim.end, Some(End::Silent));
}

#[test]
fn step_obstacle_or_deadline_lets_go_at_once() {
    for obstacle in [End::Stopping, End::Paused, End::DriverGone] {
        let mut guest = Guest::squeezed();
        guest.seen.obstacle = Some(obstacle);
        assert_eq!(guest.at(20).squeeze_bytes, None);
        assert_eq!(guest.reclaim.end, Some(obstacle));
    }
    // The device has forgotten the squeeze for another driver.
    let mut guest = Guest::squeezed();
    guest.seen.squeeze_bytes = None;
    assert!(guest.at(20).over);
    assert_eq!((guest.reclaim.end, guest.reclaim.is_confirmed), (Some(End::DriverGone), false));
    let mut guest = Guest::squeezed();
    for s in 1..30 {
        assert!(guest.tells(s * 1000, s * MIB, available(900)).squeeze_bytes.is_some());
    }
    guest.tells(30_000, 30 * MIB, available(900));
    assert_eq!(guest.reclaim.end, Some(End::Deadline));
}

#[test]
fn step_little_available_takes_nothing() {
    for (available_mib, base) in [(256, 0), (100, 0), (1536, 1280 * MIB)] {
        let mut guest = Guest::new();
        guest.seen.base_bytes = base;
        assert!(guest.tells(10, 0, available(available_mib)).over, "{available_mib} {base}");
        assert_eq!(guest.reclaim.end, Some(End::NothingToTake));
    }
    // By default the reserve of a target.
    let mut guest = Guest::new();
    guest.reclaim.keep_bytes = None;
    assert_eq!(guest.tells(10, 0, available(1536)).squeeze_bytes, Some(1280 * MIB));
    assert_eq!(guest.reclaim.keep_bytes, Some(256 * MIB));
    // More than the guest can have: never beyond the reserve of a target.
    let mut guest = Guest::new();
    let orders = guest.tells(10, 0, available(1 << 30));
    assert_eq!(orders.squeeze_bytes, Some(largest_target(MEMORY)));
}

/// One look: how much later, and what there is to see.
type Look = (u64, Option<(u64, u64, u64)>, Option<u64>, u8);

proptest! {
    /// Whatever a guest says, it is let go, once, and never squeezed beyond its reserve.
    #[test]
    fn step_any_guest_is_let_go(
        keep in prop::option::of(any::<u64>()),
        memory in prop::option::of(any::<u64>()),
        base: u64,
        looks in prop::collection::vec(
            (
                0_u64..400,
                prop::option::of((any::<u64>(), 0_u64..4, 0_u64..4)),
                prop::option::of(prop_oneof![0..MEMORY, any::<u64>()]),
                0_u8..60,
            ),
            0..200,
        ),
    ) {
        let looks: Vec<Look> = looks;
        let mut guest = Guest::new();
        guest.reclaim.keep_bytes = keep;
        (guest.seen.memory_bytes, guest.seen.base_bytes) = (memory, base);
        let (mut ms, mut squeezed, mut let_go) = (0, false, false);
        for (later, told, actual, event) in looks {
            ms += later;
            guest.seen.actual_bytes = actual;
            guest.seen.obstacle = (event == 0).then_some(End::Paused);
            if let Some((available, ooms, faults)) = told {
                let values = Statistics {
                    available_bytes: Some(available),
                    oom_kills: Some(ooms / 3),
                    major_faults: Some(faults * 100),
                    ..Statistics::default()
                };
                let at = guest.began + Duration::from_millis(ms);
                guest.seen.sample = Some(Sample { values, unknown_tags: 0, at, balloon_bytes: None });
            }
            let orders = guest.at(ms);
            if let Some(bytes) = orders.squeeze_bytes {
                prop_assert!(!let_go, "squeezed again");
                prop_assert!(ms < 30_000 && event != 0);
                prop_assert!(bytes.is_multiple_of(BALLOON_PAGE_SIZE) && bytes <= MAX_BALLOON_BYTES);
                prop_assert!(bytes <= largest_target(memory.unwrap_or(0)));
                prop_assert!(bytes > base, "less than the operator wants");
                prop_assert!(guest.reclaim.end.is_none());
                squeezed = true;
            } else {
                let_go |= squeezed;
            }
            prop_assert!(!orders.over || guest.reclaim.end.is_some());
        }
        // The client waits no longer than this, whatever the guest does.
        guest.at(ms.max(30_000));
        prop_assert!(guest.reclaim.end.is_some());
        prop_assert!(guest.at(ms.max(30_000) + 10_000).over);
    }
}
