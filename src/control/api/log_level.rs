// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/log-level`.

use log::{LevelFilter, info};
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context};
use crate::control::http::Response;
use crate::logging::LogLevel;

/// The body of `PUT`, and the answer.
#[derive(Deserialize, Serialize)]
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
    log::set_max_level(LevelFilter::from(level.level));
    info!("log level {}", LevelFilter::from(level.level));
    Ok(Response::json(&level).into())
}
