// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/log-level`.

use log::{LevelFilter, info};
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context};
use crate::control::http::Response;
use crate::logging::LogLevel;

/// A log level.
#[derive(Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct LevelView {
    /// The least important level that is logged.
    pub level: LogLevel,
}

/// `GET /v1/log-level`
pub(super) fn show(context: &Context<'_>) -> Answer {
    context.no_body()?;
    Ok(Response::json(&LevelView { level: LogLevel::now() }).into())
}

/// `PUT /v1/log-level`
pub(super) fn set(context: &Context<'_>) -> Answer {
    let level: LevelView = context.body(r#"{"level": "info"}"#)?;
    let wanted = LevelFilter::from(level.level);
    // Said at the more verbose of the two levels.
    let before = log::max_level();
    log::set_max_level(before.max(wanted));
    info!("log level {wanted}, by {}", context.peer);
    log::set_max_level(wanted);
    Ok(Response::json(&level).into())
}
