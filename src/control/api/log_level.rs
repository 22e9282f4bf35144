// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `/v1/log-level`.

use log::{LevelFilter, info};
use serde::{Deserialize, Serialize};

use super::context::{Answer, Context};
use crate::control::http::Response;
use crate::logging::LogLevel;

/// The body, and the answer.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: LogLevel,
}

/// `PUT /v1/log-level`
pub(super) fn set(context: &Context<'_>) -> Answer {
    let level: Level = context.body(r#"{"level": "info"}"#)?;
    log::set_max_level(LevelFilter::from(level.level));
    info!("log level {}", LevelFilter::from(level.level));
    Ok(Response::json(&level).into())
}
