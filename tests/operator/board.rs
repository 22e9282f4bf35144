// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The board of Grafana in `packaging/grafana`: what can be said of it without Grafana.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use vmm_integration::fetch::prometheus::Prometheus;

use crate::alerts::{in_repository, known_metrics, metrics_in};

/// Columns of a board.
const COLUMNS: u64 = 24;

fn board() -> Value {
    let text = fs::read_to_string(in_repository("packaging/grafana/balloon.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Panels with queries: their titles and the expressions.
fn queries(board: &Value) -> Vec<(String, Vec<String>)> {
    let panels = board["panels"].as_array().unwrap().iter();
    let panels = panels.filter(|panel| panel["type"] != "row").map(|panel| {
        let targets = panel["targets"].as_array().unwrap().iter();
        let expressions = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
        (panel["title"].as_str().unwrap().to_owned(), expressions.collect())
    });
    panels.collect()
}

/// The expression with what Grafana puts in the place of its variables.
fn without_variables(expression: &str) -> String {
    let text = expression.replace("$__rate_interval", "1m");
    ["$job", "$instance", "$vm"].iter().fold(text, |text, name| text.replace(name, ".*"))
}

#[test]
fn board_names_metrics_that_there_are() {
    let known = known_metrics();
    for (title, expressions) in queries(&board()) {
        assert!(!expressions.is_empty(), "{title}");
        for expression in expressions {
            assert!(!without_variables(&expression).contains('$'), "{title}: {expression}");
            let named = metrics_in(&expression);
            let unknown: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
            assert!(!named.is_empty() && unknown.is_empty(), "{title}: {unknown:?}");
        }
    }
}

/// No panel lies on another, and each has an id of its own and says what it shows.
#[test]
fn panels_of_the_board_lie_side_by_side() {
    let board = board();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeMap::new());
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        assert!(panel["type"] == "row" || panel["description"].as_str().is_some(), "{title}");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y) = (side("x"), side("y"));
        assert!(x + side("w") <= COLUMNS, "{title}");
        for cell in (x..x + side("w")).flat_map(|x| (y..y + side("h")).map(move |y| (x, y))) {
            let other = cells.insert(cell, title.to_owned());
            assert_eq!(other, None, "{title}");
        }
    }
    assert!(ids.len() > 20, "{ids:?}");
}

#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn expressions_of_the_board_are_promql() {
    let rules: Vec<_> = queries(&board())
        .into_iter()
        .flat_map(|(_, expressions)| expressions)
        .enumerate()
        .map(|(index, expression)| {
            let expression = without_variables(&expression);
            serde_json::json!({"record": format!("panel:{index}"), "expr": expression})
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    // JSON is YAML.
    let text = serde_json::json!({"groups": [{"name": "board", "rules": rules}]}).to_string();
    fs::write(&file, text).unwrap();
    let promtool = Prometheus::ensure(&mut |_| ()).unwrap().promtool;
    let said = promtool.command().args(["check", "rules"]).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.status.success() && text.contains("rules found"), "{text}");
}
