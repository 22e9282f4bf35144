// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is shown and logged of a guest.

use std::time::Instant;

use balloon_policy::{Action, Decision};
use vhost_device_balloon::operator::{TargetView, show_size};

use super::guests::Asked;
use crate::log::chain;
use crate::sockets::AskError;
use crate::views::GuestView;

/// A guest after a round.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    name: String,
    asked: Asked,
    decision: Decision,
    /// What its daemon said to that.
    told: Result<Option<TargetView>, String>,
    /// When the last sample was sent, of this round or of one before.
    sampled: Option<Instant>,
    round: Instant,
}

impl Guest {
    /// What a round brought, after what was known `before`.
    pub(super) fn new(
        name: String,
        asked: Asked,
        decision: Decision,
        told: Result<Option<TargetView>, AskError>,
        before: Option<&Self>,
    ) -> Self {
        let sampled = asked.sample.as_ref().map(|(at, _)| *at);
        Self {
            name,
            sampled: sampled.or_else(|| before.and_then(|before| before.sampled)),
            asked,
            decision,
            told: told.map_err(|error| chain(&error)),
            round: Instant::now(),
        }
    }

    /// What went wrong.
    fn error(&self) -> Option<&String> {
        let status = self.asked.status.as_ref().err();
        status.or(self.told.as_ref().err()).or(self.asked.error.as_ref())
    }

    /// A line for the log, unless all is as it was.
    pub(super) fn news(&self, before: Option<&Self>, dry_run: bool) -> Option<String> {
        let name = &self.name;
        let error = self.error().filter(|error| before.and_then(Self::error) != Some(error));
        let why = self.decision.why.name();
        let was_leased =
            before.is_some_and(|before| matches!(before.decision.action, Action::Lease { .. }));
        let is_new = before.is_none_or(|before| before.decision.action != self.decision.action);
        let said = match self.decision.action {
            Action::Lease { balloon_bytes } if is_new => {
                Some(format!("{name}: lease of {} ({why})", show_size(balloon_bytes)))
            }
            Action::Release if is_new => Some(format!("{name}: lease ended ({why})")),
            Action::Nothing if was_leased => Some(format!("{name}: lease runs out ({why})")),
            _ => None,
        };
        let said = said.map(|said| if dry_run { format!("dry run: {said}") } else { said });
        match (said, error) {
            (None, None) => None,
            (Some(said), None) => Some(said),
            (None, Some(error)) => Some(format!("{name}: {error}")),
            (Some(said), Some(error)) => Some(format!("{said}: {error}")),
        }
    }

    /// The guest now, but for its socket.
    pub(super) fn view(&self) -> GuestView {
        let status = self.asked.status.as_ref().ok();
        // What its daemon was told changed what it had said.
        let target = match &self.told {
            Ok(Some(target)) => Some(target),
            _ => status.map(|(_, target)| target),
        };
        let left = target.and_then(|target| target.lease_left_seconds);
        let left = left.map(|left| (left - self.round.elapsed().as_secs_f64()).max(0.0));
        let memory = target.and_then(|target| target.memory_bytes);
        let leave = |taken: u64| memory.map(|memory| memory.saturating_sub(taken));
        GuestView {
            name: self.name.clone(),
            socket: String::new(),
            error: self.error().cloned(),
            sample_age_seconds: self.sampled.map(|at| at.elapsed().as_secs_f64()),
            memory_bytes: memory,
            base_bytes: target.and_then(|target| leave(target.base_bytes)),
            floor_bytes: self.decision.floor_bytes,
            working_set_bytes: self.decision.working_set_bytes,
            balloon_bytes: status.and_then(|(status, _)| status.actual_bytes),
            leave_bytes: match self.decision.action {
                Action::Lease { balloon_bytes } => leave(balloon_bytes),
                Action::Nothing | Action::Release => None,
            },
            lease_left_seconds: left.filter(|left| *left > 0.0),
            why: Some(self.decision.why.name().to_owned()),
        }
    }
}
