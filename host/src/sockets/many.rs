// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks all daemons of a host.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Daemon;

/// How many daemons are asked at a time.
const AT_A_TIME: usize = 64;

/// Does the same with each daemon, with at most 64 of them at a time, and returns what came of it by
/// the path of the socket. `ask` must end: every request of a [`Daemon`] does.
pub async fn each<T, F, W>(daemons: Vec<Daemon>, ask: F) -> Vec<(Daemon, T)>
where
    T: Send + 'static,
    F: Fn(Daemon) -> W,
    W: Future<Output = T> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut asked = JoinSet::new();
    for daemon in daemons {
        let (places, asking) = (Arc::clone(&places), ask(daemon.clone()));
        asked.spawn(async move {
            // Never closed.
            let _place = places.acquire_owned().await;
            (daemon, asking.await)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    answers
}
