// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as it travels with a migrating guest.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::balloon::Balloon;
use super::features::{DEVICE_FEATURES, Features};
use super::options::IntervalError;
use crate::lock::lock;

/// What a guest has made of its device, and what it was told by it: all that another daemon needs
/// to go on under the same driver. Plain data; its writer adds a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedBalloon {
    /// The features that the driver has acked; none if there is no driver.
    pub acked_features: Option<u64>,
    /// Pages of 4 KiB that are wanted in the balloon.
    pub num_pages: u32,
    /// Pages of 4 KiB that the driver says are in it; none if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<u32>,
    /// Which round of hinting was wanted.
    pub free_page_hint_cmd_id: u32,
    /// Which ID the next round is to have: the driver knows those before it.
    pub next_hint_cmd_id: u32,
    /// What the driver fills its free pages with; none if that is not known.
    pub poison_val: Option<u32>,
    /// How often statistics are polled.
    pub statistics_interval: Duration,
}

/// Why a device cannot go on from what another one saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RestoreError {
    /// Started with other options, the other daemon offered more.
    #[error(
        "the guest's driver has acked features {acked:#x} and this device does not offer \
         {missing:#x} of them: start the daemon with the options that the other one had"
    )]
    NotOffered {
        /// What the driver acked.
        acked: u64,
        /// What of it is not offered.
        missing: u64,
    },
    /// The interval of the statistics.
    #[error("what was saved is damaged")]
    Interval(#[from] IntervalError),
}

impl Balloon {
    /// Whether the operator wants the target, whatever it leaves to the guest.
    pub(crate) fn is_target_forced(&self) -> bool {
        self.target_forced.load(Ordering::Relaxed)
    }

    /// Wants the target, whatever it leaves to the guest, or not.
    pub(crate) fn force_target(&self, forced: bool) {
        self.target_forced.store(forced, Ordering::Relaxed);
    }

    /// The device as another daemon needs it to go on under the same driver.
    pub(crate) fn save(&self) -> SavedBalloon {
        let next_hint_cmd_id = lock(&self.hinting).next_id();
        let config = *self.config();
        SavedBalloon {
            next_hint_cmd_id,
            acked_features: self.acked_features(),
            num_pages: config.num_pages(),
            actual: config.told_actual(),
            free_page_hint_cmd_id: config.free_page_hint_cmd_id(),
            poison_val: config.poison_is_known().then_some(config.poison_val()),
            statistics_interval: self.statistics_interval(),
        }
    }

    /// Goes on from what another device saved, its target included. A round of hinting that was
    /// under way there is over; [`Balloon::take_config_changed`] says that the driver must be notified.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing changes.
    pub(crate) fn restore(&self, saved: SavedBalloon) -> Result<(), RestoreError> {
        let acked = saved.acked_features.unwrap_or(0);
        // The transport's bits are negotiated with each frontend.
        let missing = acked & DEVICE_FEATURES & !self.offered();
        if missing != 0 {
            return Err(RestoreError::NotOffered { acked, missing });
        }
        // Without a statistics queue an interval means nothing, wherever it comes from.
        if self.options().statistics {
            self.set_statistics_interval(saved.statistics_interval)?;
        }
        *lock(&self.acked) = saved.acked_features.map(Features);
        if let Some(features) = saved.acked_features {
            self.see_acked(Features(features));
        }
        lock(&self.statistics).sample = None;
        let mut hinting = lock(&self.hinting);
        hinting.restore(saved.free_page_hint_cmd_id, saved.next_hint_cmd_id);
        let mut config = self.config();
        config.set_num_pages(saved.num_pages);
        // The daemon that it comes from has let the guest have it.
        self.target_forced.store(true, Ordering::Relaxed);
        config.set_actual(saved.actual);
        config.set_poison_val(saved.poison_val);
        config.set_free_page_hint_cmd_id(hinting.command_id());
        // A reclaim that the other daemon did not end has left a larger balloon.
        let is_larger = saved.actual.is_some_and(|actual| actual > saved.num_pages);
        if is_larger || hinting.command_id() != saved.free_page_hint_cmd_id {
            self.config_changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
