// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the policy is told of guests, and what daemons are told of its decisions.

use std::time::{Duration, Instant};

use balloon_policy::{Action, GuestSeen, Sample};
use serde_json::{Value, json};
use tokio::time;
use vhost_device_balloon::operator::{SampleView, StatisticsView, StatusView, TargetView};

use crate::log::chain;
use crate::sockets::{AskError, Daemon};

/// How long a guest may take for its statistics: one that is stopped, or starves, sends none.
const GUEST_LIMIT: Duration = Duration::from_secs(1);

/// Until the first look whether the guest has sent its statistics; each next one comes after twice the time.
const FIRST_LOOK: Duration = Duration::from_millis(4);

/// Longest time between two looks.
const LAST_LOOK: Duration = Duration::from_millis(128);

/// A guest, and what was learned of it in this round.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// What its daemon says; an error if it does not answer.
    pub(super) status: Result<(StatusView, TargetView), String>,
    /// Its last statistics, and when they were sent.
    pub(super) sample: Option<(Instant, SampleView)>,
    /// Why the statistics are not new; none if they are.
    pub(super) error: Option<String>,
}

impl Asked {
    /// Asks a daemon and its guest, for a limited time together.
    pub(super) async fn of(daemon: Daemon, limit: Duration) -> Self {
        let (mut sample, mut error) = (None, None);
        let asked = async {
            // One that does not answer has no guest to wait for.
            match statistics(&daemon, &mut sample).await {
                Ok(()) => {}
                Err(failed @ (AskError::Refused { .. } | AskError::Silent(_))) => {
                    error = Some(chain(&failed));
                }
                Err(failed) => return Err(failed),
            }
            // After the statistics, which may have changed what is in the balloon.
            Ok((daemon.status().await?, daemon.get("/v1/target").await?))
        };
        let status = time::timeout(limit, asked).await.unwrap_or(Err(AskError::Timeout(limit)));
        Self { status: status.map_err(|error| chain(&error)), sample, error }
    }

    /// The same as the policy sees it.
    pub(super) fn seen(&self, name: &str) -> GuestSeen {
        match &self.status {
            Ok((status, target)) => GuestSeen {
                name: name.to_owned(),
                memory_bytes: target.memory_bytes,
                base_bytes: target.base_bytes,
                target_bytes: target.bytes,
                actual_bytes: status.actual_bytes,
                resident_bytes: status.memory.as_ref().and_then(|memory| memory.resident_bytes),
                deflates_on_oom: deflates_on_oom(status),
                sample: self
                    .sample
                    .as_ref()
                    .and_then(|(at, view)| read(view, at.elapsed(), status)),
            },
            Err(_) => GuestSeen { name: name.to_owned(), ..GuestSeen::default() },
        }
    }
}

/// Asks the guest for its statistics, and waits for them. The last ones are kept where no new ones come.
async fn statistics(
    daemon: &Daemon,
    sample: &mut Option<(Instant, SampleView)>,
) -> Result<(), AskError> {
    let asked = Instant::now();
    daemon.ask("POST", "/v1/statistics/refresh", None).await?;
    let mut pause = FIRST_LOOK;
    loop {
        time::sleep(pause).await;
        let looked = Instant::now();
        let view: StatisticsView = daemon.get("/v1/statistics").await?;
        let at = view.sample.as_ref().and_then(|sample| {
            let age = Duration::try_from_secs_f64(sample.age_seconds).ok()?;
            // On the safe side: the age is that of the answer.
            looked.checked_sub(age)
        });
        *sample = view.sample.and_then(|view| Some((at?, view)));
        if at.is_some_and(|at| at >= asked) {
            return Ok(());
        }
        if asked.elapsed() >= GUEST_LIMIT {
            return Err(AskError::Silent(GUEST_LIMIT));
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// Whether the driver takes memory out of the balloon before the guest's OOM killer runs.
fn deflates_on_oom(status: &StatusView) -> bool {
    let acked = status.acked_features.as_deref().unwrap_or_default();
    acked.iter().any(|feature| feature == "deflate_on_oom")
}

/// What the policy needs; none if the guest does not send how much it has available.
///
/// Linux takes the balloon's pages out of its total (`adjust_managed_page_count`), unless its driver may
/// deflate on OOM.
fn read(view: &SampleView, age: Duration, status: &StatusView) -> Option<Sample> {
    let value = |name: &str| view.values.get(name).copied().flatten();
    let balloon_bytes = if deflates_on_oom(status) { view.balloon_bytes? } else { 0 };
    Some(Sample {
        age,
        total_bytes: value("total_bytes")?.checked_sub(balloon_bytes)?,
        available_bytes: value("available_bytes")?,
        swapped_in_bytes: value("swapped_in_bytes").unwrap_or(0),
        swapped_out_bytes: value("swapped_out_bytes").unwrap_or(0),
        major_faults: value("major_faults").unwrap_or(0),
        oom_kills: value("oom_kills").unwrap_or(0),
    })
}

/// Tells the daemon what was decided; returns the target that it has then, if it was told anything.
///
/// # Errors
/// [`AskError`]
pub(super) async fn tell(
    daemon: &Daemon,
    action: Action,
    lease: Duration,
) -> Result<Option<TargetView>, AskError> {
    let (method, body) = match action {
        Action::Nothing => return Ok(None),
        Action::Lease { balloon_bytes } => ("PUT", Some(lease_of(balloon_bytes, lease))),
        Action::Release => ("DELETE", None),
    };
    daemon.json(method, "/v1/target", body.as_ref()).await.map(Some)
}

fn lease_of(bytes: u64, lease: Duration) -> Value {
    json!({"bytes": bytes, "lease_seconds": lease.as_secs()})
}
