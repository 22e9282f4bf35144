// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which connection makes room for a newcomer. Pure: no socket, no clock.

use std::time::{Duration, Instant};

/// What a connection is about. The first makes room first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activity {
    /// Has had an answer and asks for nothing.
    Idle,
    /// Has had its last answer, and its client has not hung up yet.
    Lingering,
    /// Has asked for nothing yet.
    Fresh,
    /// Is sending a request.
    Asking,
    /// Is taking an answer.
    Answering,
    /// Waits for an answer that is not ready. It has a deadline of its own.
    Waiting,
}

impl Activity {
    /// How long a connection may do this, however many newcomers there are: enough for a client
    /// that does its part, on a busy machine.
    fn spared(self) -> Duration {
        Duration::from_millis(match self {
            Self::Idle => 0,
            Self::Lingering => 100,
            Self::Fresh => 250,
            Self::Asking | Self::Answering => 1_000,
            Self::Waiting => 10_000,
        })
    }
}

/// What a newcomer has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Take the place of the connection with this number.
    Of(usize),
    /// Wait until then.
    NotBefore(Instant),
}

/// Who makes room, of `connections` with their numbers, what each does, and since when; `None` if
/// there is none.
pub(super) fn find(
    now: Instant,
    connections: impl Iterator<Item = (usize, Activity, Instant)>,
) -> Option<Room> {
    let due = |(place, activity, since): (usize, Activity, Instant)| {
        let due = since + activity.spared();
        (due > now, if due > now { Activity::Idle } else { activity }, due, place)
    };
    connections.map(due).min().map(|(spared, _, due, place)| match spared {
        true => Room::NotBefore(due),
        false => Room::Of(place),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connection_goes_before_a_busy_one() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let all = [
            (0, Activity::Waiting, at(0)),
            (1, Activity::Answering, at(0)),
            (2, Activity::Asking, at(0)),
            (3, Activity::Fresh, at(0)),
            (4, Activity::Lingering, at(1)),
            (5, Activity::Idle, at(9_000)),
            (6, Activity::Idle, at(8_000)),
        ];
        let find = |now, numbers: &[usize]| {
            find(at(now), all.into_iter().filter(|one| numbers.contains(&one.0)))
        };
        for (rest, first) in [
            (&[0, 1, 2, 3, 4, 5, 6][..], 6),
            (&[0, 1, 2, 3, 4, 5], 5),
            (&[0, 1, 2, 3, 4], 4),
            (&[0, 1, 2, 3], 3),
            (&[0, 1, 2], 2),
            (&[0, 1], 1),
            (&[0], 0),
        ] {
            assert_eq!(find(10_000, rest), Some(Room::Of(first)), "{rest:?}");
        }
        // Each is spared for a while, and then the first of them makes room.
        assert_eq!(find(99, &[0, 1, 2, 3, 4]), Some(Room::NotBefore(at(101))));
        assert_eq!(find(101, &[0, 1, 2, 3, 4]), Some(Room::Of(4)));
        assert_eq!(find(249, &[0, 1, 2, 3]), Some(Room::NotBefore(at(250))));
        assert_eq!(find(999, &[0, 1]), Some(Room::NotBefore(at(1_000))));
        assert_eq!(find(0, &[]), None);
    }
}
