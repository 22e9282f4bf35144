// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The board of Grafana, asked panel by panel of a real Prometheus.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::prometheus::{SCRAPE_SECONDS, Series, Server};

/// What Grafana makes of it: four scrapes.
const RATE_SCRAPES: u64 = 4;

/// The parts of a board that its queries and places are in.
#[derive(Deserialize)]
pub(super) struct Board {
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
struct Panel {
    title: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "gridPos")]
    place: Place,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default, rename = "fieldConfig")]
    fields: Fields,
    #[serde(default)]
    transformations: serde_json::Value,
}

/// In columns, of which there are 24, and lines.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Place {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) w: u32,
    pub(super) h: u32,
}

#[derive(Deserialize)]
struct Target {
    expr: String,
    #[serde(default, rename = "legendFormat")]
    legend: String,
    #[serde(default, rename = "refId")]
    id: String,
}

#[derive(Default, Deserialize)]
struct Fields {
    defaults: Defaults,
}

#[derive(Default, Deserialize)]
struct Defaults {
    #[serde(default)]
    unit: String,
}

/// A panel with its data.
pub(super) struct Answered {
    pub(super) title: String,
    pub(super) kind: String,
    pub(super) unit: String,
    pub(super) place: Place,
    /// Each series with its name.
    pub(super) series: Vec<(String, Series)>,
}

impl Answered {
    /// Whether a panel that should has no data.
    pub(super) fn is_empty(&self) -> bool {
        self.kind != "row" && self.series.iter().all(|(_, series)| series.points.is_empty())
    }
}

impl Board {
    /// Reads a board.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("expected a board of Grafana")
    }

    /// Asks each query of each panel.
    ///
    /// # Errors
    /// If Prometheus refuses one.
    pub(super) fn ask(&self, server: &Server, last: Duration) -> Result<Vec<Answered>> {
        let ask = |panel: &Panel| {
            let mut series = Vec::new();
            for target in &panel.targets {
                let found = server.range(&without_variables(&target.expr), last)?;
                series
                    .extend(found.into_iter().map(|series| (name(panel, target, &series), series)));
            }
            Ok(Answered {
                title: panel.title.clone(),
                kind: panel.kind.clone(),
                unit: panel.fields.defaults.unit.clone(),
                place: panel.place,
                series,
            })
        };
        self.panels.iter().map(ask).collect()
    }
}

/// The expression with what Grafana puts in the place of its variables.
fn without_variables(expression: &str) -> String {
    let rate = format!("{}s", RATE_SCRAPES * SCRAPE_SECONDS);
    let text = expression.replace("$__rate_interval", &rate);
    ["$job", "$instance", "$vm"].iter().fold(text, |text, name| text.replace(name, ".*"))
}

/// The name of a series: the query's legend, or the column of a table.
fn name(panel: &Panel, target: &Target, series: &Series) -> String {
    if panel.kind == "table" {
        let renamed = panel.transformations.as_array().into_iter().flatten();
        let names = renamed.filter_map(|step| step["options"]["renameByName"].as_object());
        let column = names.filter_map(|names| names.get(&format!("Value #{}", target.id))).next();
        return column.and_then(|name| name.as_str()).unwrap_or_default().to_owned();
    }
    let labels = series.labels.as_object().into_iter().flatten();
    labels.fold(target.legend.clone(), |text, (label, value)| {
        text.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default())
    })
}
