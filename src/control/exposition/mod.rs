// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics as Prometheus scrapes them (OpenMetrics 1.0, text).
//!
//! [`families`] lists them. Counters are those since the daemon started: a reset by an operator does not
//! touch them. A series that would say nothing is left out.

#[cfg(test)]
mod document;
mod families;
mod family;
mod guest;
mod picture;
mod process;

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::state::State;
use picture::Picture;

/// What a page of metrics is: OpenMetrics 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label of every metric that names the VM.
const VM: &str = "vm";

/// All metrics, of one moment.
///
/// # Errors
/// None that happens: text can be written to memory.
pub(crate) fn text(state: &State, resident_bytes: Option<u64>) -> Result<String, fmt::Error> {
    let name = state.vm_name().map(|name| (Cow::from(VM), Cow::from(name.to_owned())));
    let mut registry = Registry::with_labels(name.into_iter());
    registry.register_collector(Box::new(Page(Picture::of(state, resident_bytes))));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// All families, of one picture.
#[derive(Debug)]
struct Page(Picture);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        families::all().try_for_each(|family| family.encode(&self.0, &mut encoder))
    }
}
