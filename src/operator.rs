// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the control socket answers, for clients in Rust: each type is the JSON of one answer or of a
//! part of it. `packaging/openapi.json` says which request has which answer. Beside them are sizes as
//! operators write them, the reserve of a target, what is no guest pressure yet, and the two formats of
//! metrics.
//!
//! ```
//! use vhost_device_balloon::operator::PausedView;
//!
//! let paused: PausedView = serde_json::from_str(r#"{"paused_by": ["operator"]}"#).unwrap();
//! assert_eq!(paused.paused_by, ["operator"]);
//! ```

pub use crate::control::api::target::TargetView;
pub use crate::control::counters::{BucketView, CountersView, HistogramView};
pub use crate::control::exposition::CONTENT_TYPE as OPENMETRICS;
pub use crate::control::negotiate::wants_openmetrics;
pub use crate::control::plain_text::{CONTENT_TYPE as PLAIN_TEXT, from_openmetrics};
pub use crate::control::reclaim::ReclaimView;
pub use crate::control::views::{
    HintingView, MemoryView, PausedView, PinView, PinsView, QueueView, RefusedView, SampleView,
    StatisticsView, StatusView,
};
pub use crate::device::reclaim::{SPARED_MAJOR_FAULTS, SPARED_SWAP_BYTES};
pub use crate::device::reserve_bytes;
pub use crate::discard::Backing;
pub use crate::logging::LogLevel;
pub use crate::values::{parse_size, show_size};
