// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many hosts: with the policy, without one, and with as much memory as their guests have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::guest::Memory;
use crate::host::{Host, HostConfig, Outcome};

/// The same guests on three kinds of hosts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compared {
    /// Memory of the guests in hundredths of the hosts'.
    pub overcommit_percent: u64,
    /// Hosts with as much memory as their guests, without a policy: nothing can be lacking.
    pub sized: Outcome,
    /// Overcommitted hosts without a policy: guests report free memory, and that is all.
    pub reporting: Outcome,
    /// The same with the policy.
    pub policy: Outcome,
}

/// Lets `hosts` hosts live for so long, on all processors. Each has another seed.
pub fn live<M: Memory>(
    hosts: usize,
    config: &HostConfig,
    time: Duration,
    done: &(dyn Fn() + Sync),
) -> Outcome {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut sum = Outcome::default();
        loop {
            let host = next.fetch_add(1, Ordering::Relaxed);
            if host >= hosts {
                return sum;
            }
            let seed = config.seed.wrapping_add(host as u64 * 0x9e37_79b9);
            let config = HostConfig { seed, ..config.clone() };
            sum.add(&Host::<M>::new(&config).live(time));
            done();
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = Outcome::default();
        for thread in threads {
            match thread.join() {
                Ok(outcome) => sum.add(&outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum
    })
}

/// The same guests with enough memory, without a policy.
pub fn sized<M: Memory>(
    hosts: usize,
    config: &HostConfig,
    time: Duration,
    done: &(dyn Fn() + Sync),
) -> Outcome {
    let sized = HostConfig { overcommit_percent: 100, rules: None, ..config.clone() };
    live::<M>(hosts, &sized, time, done)
}

/// The same guests as in `sized`, on overcommitted hosts without a policy and with one. `config` has the
/// policy.
pub fn compare<M: Memory>(
    sized: Outcome,
    hosts: usize,
    config: &HostConfig,
    time: Duration,
    done: &(dyn Fn() + Sync),
) -> Compared {
    let without = HostConfig { rules: None, ..config.clone() };
    Compared {
        overcommit_percent: config.overcommit_percent,
        sized,
        reporting: live::<M>(hosts, &without, time, done),
        policy: live::<M>(hosts, config, time, done),
    }
}
