// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The alert rules of `packaging/prometheus`.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vmm_integration::fetch::prometheus::Prometheus;

pub(crate) fn in_repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Names of metrics in a text; those of a histogram without what Prometheus puts behind them.
pub(crate) fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let of_daemon = |word: &&str| word.starts_with("balloon_") || word.starts_with("process_");
    words.filter(of_daemon).map(|word| word.strip_suffix("_bucket").unwrap_or(word)).collect()
}

/// Those of the daemon and of hostd: the tables of the two pages.
pub(crate) fn known_metrics() -> BTreeSet<String> {
    let pages = ["docs/user/metrics.md", "docs/user/host.md"]
        .map(|page| fs::read_to_string(in_repository(page)).unwrap());
    let rows = pages.iter().flat_map(|page| page.lines());
    let names = rows.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let is_metric = |name: &str| name.starts_with("balloon_") || name.starts_with("process_");
    names.filter(|(name, _)| is_metric(name)).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn alerts_name_metrics_that_there_are() {
    let known = known_metrics();
    let rules = fs::read_to_string(in_repository("packaging/prometheus/alerts.yml")).unwrap();
    let fields = rules.lines().filter_map(|line| line.trim_start().strip_prefix("expr: "));
    let expressions = fields.collect::<Vec<_>>().join("\n");
    let named = metrics_in(&expressions);
    assert!(named.len() > 10 && known.len() > 40, "{named:?} {known:?}");
    let unknown: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Also that each has one series for which it fires and one for which it does not.
#[test]
#[ignore = "needs promtool: cargo xtask test"]
fn alerts_fire_when_they_must_and_only_then() {
    let promtool = Prometheus::ensure(&mut |_| ()).unwrap().promtool;
    let tests = in_repository("packaging/prometheus/alerts_test.yml");
    let said = promtool.command().args(["test", "rules"]).arg(&tests).output().unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.status.success(), "{text}");
    let rules = fs::read_to_string(tests.with_file_name("alerts.yml")).unwrap();
    let tests = fs::read_to_string(tests).unwrap();
    for name in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = format!("      - alertname: {name}\n");
        let spares = format!("      - {{alertname: {name}, ");
        assert!(tests.contains(&fires) && tests.contains(&spares), "{name} is not tested");
    }
}
