// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/user/metrics.md`, from the list of metrics and the comments of the values of their labels.
//! `UPDATE_GENERATED=1 cargo test --lib` writes it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use prometheus_client::metrics::MetricType;
use strum::{EnumMessage, VariantArray};

use super::{VM, families};
use crate::device::DriverState;
use crate::discard::Cause;
use crate::metrics::{Named, SkipReason};
use crate::tests::generated;

const FILE: &str = "docs/user/metrics.md";

const ABOUT: &str = "\
# Metrics

`GET /metrics` answers on the [control socket](control.md), and with `--metrics-address 127.0.0.1:9090` over TCP, which
takes loopback addresses only and serves nothing else. The format is OpenMetrics 1.0 for a client whose `Accept` header
names and prefers it, as Prometheus does, and the text format 0.0.4 for every other. `HEAD` is answered wherever `GET`
is; a query string after `/metrics` is ignored. Counters are since the daemon started; `reset-counters` does not touch
them.

With `--name NAME` every metric has the label `vm=\"NAME\"`. The unit of the systemd service sets it.

**A missing series.** A series that would say nothing is not there: one VM in use has some 50, and a thousand VMs have a
thousand times as many. The last column says what a missing series means. `rate` and `increase` do not see the step from
a missing series to its first value. Use the counters without a label for alerts, which are there from the start, or
compare with nothing: `balloon_errors_total unless balloon_errors_total offset 10m`. When a series goes away, Prometheus
marks it stale at the next scrape.

The page is made from the daemon's source, and a test fails when they differ.

| metric | type | label | what | in JSON | a missing series means |
|---|---|---|---|---|---|
";

/// The rules of Prometheus, from which the table of alerts is made.
const RULES: &str = "packaging/prometheus/alerts.yml";

const ALERTS: &str = "
## Alerts

`packaging/prometheus/alerts.yml` has them as rules of Prometheus, each tested by `alerts_test.yml` beside it. A package has them
in `/usr/share/doc/vhost-device-balloon`. Those of a host need [hostd](host.md).

| alert | what | for | expression |
|---|---|---|---|
";

const BOARD: &str = "
## Board

`packaging/grafana/balloon.json` is a dashboard for Grafana (Dashboards, New, Import): the host, its guests as a table, what they return
and how long it takes, pressure, targets and leases. It asks for the data source, and is for daemons that are scraped through
[hostd](host.md#metrics-of-a-host) or one by one; without hostd the panels of the host are empty. Tests read every expression and the names in it.
Grafana itself was never run with it here.

![The panels of the board with the data of four guests](../board.svg)

The picture is not Grafana's: this project's charts drew what a real Prometheus, which scraped a hostd with four Linux guests, answered to
each query of the board (`cargo xtask pictures`, which fails if a panel has no data).
";

fn document() -> String {
    let mut page = ABOUT.to_owned();
    for family in families::all() {
        let kind = match family.kind {
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
            _ => "gauge",
        };
        let label = match (family.kind, family.label) {
            (MetricType::Histogram, _) => "`le`".to_owned(),
            (_, label) => label.map_or(String::new(), |label| format!("`{label}`")),
        };
        let json = family.place().map(|(path, field)| format!("`{field}` of `{path}`"));
        let (name, help, absent) = (family.full_name(), family.help, family.absent);
        let json = json.unwrap_or_default();
        let _ = writeln!(page, "| `{name}` | {kind} | {label} | {help} | {json} | {absent} |");
    }
    page += ALERTS;
    alerts(&mut page);
    page += BOARD;
    page += "\n## Reasons\n\nThe label `reason`, with the memory that is not discarded:\n\n";
    values(&mut page, SkipReason::VARIANTS, |reason| reason.name());
    page += "\n## Queues, causes, states\n\nThe label `queue`:\n\n";
    values(&mut page, Named::VARIANTS, |queue| queue.into());
    page += "\nThe label `cause`:\n\n";
    values(&mut page, Cause::VARIANTS, |cause| cause.name());
    page += "\nThe label `state`:\n\n";
    values(&mut page, DriverState::VARIANTS, |state| state.name());
    page
}

/// The rows of the alerts. The file says that each field is on one line.
fn alerts(page: &mut String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RULES);
    let rules = fs::read_to_string(path).expect("the rules can be read");
    for rule in rules.split("- alert: ").skip(1) {
        let field = |name: &str| {
            rule.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(": "))
        };
        let expression = field("expr").expect("an expression").replace('|', "\\|");
        let (name, what) = (rule.lines().next(), field("summary"));
        let (name, what) = (name.expect("a name"), what.expect("a summary"));
        let held = field("for").unwrap_or_default();
        let _ = writeln!(page, "| `{name}` | {what} | {held} | `{expression}` |");
    }
}

/// A table of the values of a label, with their comments.
fn values<T: EnumMessage + Copy>(page: &mut String, all: &[T], name: fn(T) -> &'static str) {
    *page += "| value | what |\n|---|---|\n";
    for value in all {
        let what = value.get_documentation().expect("each value has a comment");
        let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(page, "| `{}` | {} |", name(*value), what.trim_end_matches('.'));
    }
}

#[test]
fn metrics_page_is_that_of_the_code() {
    let page = document();
    generated::check(FILE, &page, |found| found == page);
}

#[test]
fn metric_has_the_name_of_its_field() {
    let mut known = 0;
    for family in families::all() {
        let name = family.full_name();
        let name = name.trim_end_matches("_total");
        assert!(!family.help.ends_with('.') && family.help.len() < 120, "{name}");
        assert_ne!(family.label, Some(VM), "{name}");
        let Some((path, field)) = family.place() else {
            assert!(name.starts_with("process_"), "{name} is not in JSON");
            continue;
        };
        known += 1;
        let field =
            field.replace("sample.values.", "guest_").replace("sample.", "guest_statistics_");
        let expected = match field.as_str() {
            // There is no such metric without a value.
            "version" => "build_info".to_owned(),
            field => field.replace('.', "_"),
        };
        assert_eq!(name, format!("balloon_{expected}"), "{path}");
    }
    assert!(known > 30, "{known}");
}
