// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that are silent or lie, daemons that vanish, and a policy that dies.

use std::time::Duration;

use guest_driver::random::Random;
use vhost_device_balloon::SimulatedStatistics;

/// What is wrong with one guest or its daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The guest never sends statistics.
    Silent,
    /// It says that it uses next to nothing.
    Modest,
    /// It says that it uses everything.
    Greedy,
    /// Its numbers make no sense.
    Nonsense,
    /// Its daemon is killed once an hour, and answers again a minute later.
    Vanishes,
}

impl Fault {
    /// The fault of a guest where one in `one_in` has one; 0 for none.
    pub fn of(random: &mut Random, one_in: u64) -> Self {
        if one_in == 0 || random.below(one_in) > 0 {
            return Self::None;
        }
        let all = [Self::Silent, Self::Modest, Self::Greedy, Self::Nonsense, Self::Vanishes];
        all[random.index(all.len())]
    }

    /// What the guest says instead; `None` if it says nothing.
    pub fn says(self, truth: SimulatedStatistics) -> Option<SimulatedStatistics> {
        match self {
            Self::None | Self::Vanishes => Some(truth),
            Self::Silent => None,
            Self::Modest => {
                Some(SimulatedStatistics { available_bytes: truth.total_bytes / 100 * 99, ..truth })
            }
            Self::Greedy => Some(SimulatedStatistics { available_bytes: 0, ..truth }),
            Self::Nonsense => Some(SimulatedStatistics {
                available_bytes: u64::MAX - truth.free_bytes,
                oom_kills: u64::MAX,
                ..truth
            }),
        }
    }

    /// Whether the daemon is killed in the tick that ends at `now`.
    pub fn kills_daemon(self, now: Duration, tick: Duration) -> bool {
        self == Self::Vanishes && now.as_secs() % 3600 < tick.as_secs()
    }

    /// Whether the daemon answers.
    pub fn answers(self, now: Duration) -> bool {
        self != Self::Vanishes || now.as_secs() % 3600 >= 60
    }
}
