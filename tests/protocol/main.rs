// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device over vhost-user, with a frontend of our own.

#[path = "../support/raw.rs"]
mod raw;

mod admission;
mod backing;
mod balloon_queues;
mod channel;
mod descriptors;
mod device_state;
mod driver_state;
mod features_document;
mod hand_over;
mod hand_over_systemd;
mod holes;
mod host_oom;
mod init_features;
mod kept_memory;
mod kicks;
mod memory_lost;
mod migration;
mod migrations;
mod negotiation;
mod notifications;
mod owed_changes;
mod reporting;
mod rings_kept;
mod unknown;
mod vmm_target;
mod waiting;
mod wind_up;
