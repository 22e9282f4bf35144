// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks all daemons of a host.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Daemon;

/// How many daemons are asked at a time.
const AT_A_TIME: usize = 64;

/// Does the same with each daemon, with at most 64 of them at a time and in their order, and returns
/// what came of it by the path of the socket. `ask` must end: every request of a [`Daemon`] does.
pub async fn each<T, F, W>(daemons: Vec<Daemon>, ask: F) -> Vec<(Daemon, T)>
where
    T: Send + 'static,
    F: Fn(Daemon) -> W,
    W: Future<Output = T> + Send + 'static,
{
    let asked = daemons.into_iter().map(|daemon| (daemon.clone(), ask(daemon)));
    let mut answers = all(asked).await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    answers
}

/// Does something else with each daemon, as [`each`], and returns what came of it in the given order.
pub(crate) async fn each_with<A, T, F, W>(daemons: Vec<(Daemon, A)>, tell: F) -> Vec<T>
where
    T: Send + 'static,
    F: Fn(Daemon, A) -> W,
    W: Future<Output = T> + Send + 'static,
{
    let told = daemons.into_iter().enumerate().map(|(at, (daemon, what))| (at, tell(daemon, what)));
    let mut answers = all(told).await;
    answers.sort_by_key(|(at, _)| *at);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Waits for all, of which each has a key.
async fn all<K, T, W>(of: impl Iterator<Item = (K, W)>) -> Vec<(K, T)>
where
    K: Send + 'static,
    T: Send + 'static,
    W: Future<Output = T> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut waits = JoinSet::new();
    for (key, wait) in of {
        let places = Arc::clone(&places);
        waits.spawn(async move {
            // Never closed.
            let _place = places.acquire_owned().await;
            (key, wait.await)
        });
    }
    waits.join_all().await
}
