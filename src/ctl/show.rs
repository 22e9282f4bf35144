// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers of the daemon as tables to read.

use std::time::Duration;

use serde_json::{Error, Value};

use crate::control::api::log_level::LevelView;
use crate::control::api::statistics::IntervalView;
use crate::control::api::target::TargetView;
use crate::control::views::{
    HintingView, PausedView, PinView, PinsView, StatisticsView, StatusView,
};
use crate::values::show_size;

/// Rows of a name and a value, the values in one column.
#[derive(Default)]
struct Table(Vec<(String, String)>);

impl Table {
    fn row(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    fn text(self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
    }
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

pub(super) fn status(answer: &str) -> Result<String, Error> {
    let status: StatusView = serde_json::from_str(answer)?;
    let mut table = Table::default();
    if let Some(name) = status.name {
        table.row("name", name);
    }
    table.row("version", status.version);
    let waiting = match status.waiting_connections {
        0 => String::new(),
        1 => ", 1 more waiting".to_owned(),
        more => format!(", {more} more waiting"),
    };
    let frontend = if status.connected { "connected" } else { "none" };
    table.row("VMM", format!("{frontend}{waiting}"));
    table.row("driver", driver(&status.driver));
    if let Some(hint) = status.driver_hint {
        table.row("  look into", hint);
    }
    table.row("discarding", discarding(&status.paused));
    let refused = status.target_refused.map(|why| format!(", refused: {why}"));
    table.row("target", show_size(status.target_bytes) + &refused.unwrap_or_default());
    if let Some(left) = status.lease_left_seconds {
        table.row("  lease", lease(left, status.base_target_bytes));
    }
    if let Some(bytes) = status.reclaim_target_bytes {
        table.row("  reclaim", format!("squeezes to {}", show_size(bytes)));
    }
    let waits = match status.collecting_bytes {
        0 => String::new(),
        bytes => {
            format!(", {} of it kept: its huge pages are not full", show_size(bytes))
        }
    };
    table.row(
        "in the balloon",
        status.actual_bytes.map_or("unknown".to_owned(), show_size) + &waits,
    );
    if let Some(memory) = &status.memory {
        let resident = memory.resident_bytes.map_or("unknown".to_owned(), show_size);
        // Memory that virtio-mem has not plugged is announced, too.
        table.row("memory of the VMM", format!("{}, {resident} resident", show_size(memory.bytes)));
        for region in &memory.regions {
            let kind = if region.hugetlb { "hugetlb" } else { "shared" };
            let pages = show_size(region.page_bytes);
            let kept = region.kept_for.as_ref();
            let kept = kept.map_or(String::new(), |reason| format!(", never discarded: {reason}"));
            let text = format!("{} of {kind} memory, {pages} pages{kept}", show_size(region.bytes));
            table.row(format!("  at {:#x}", region.address), text);
        }
    }
    if let Some(total) = status.guest_total_bytes {
        table.row("memory of the guest", format!("{}, as it says", show_size(total)));
    }
    table.row(
        "pins",
        if status.pins.is_empty() { "none".to_owned() } else { status.pins.len().to_string() },
    );
    for pin in &status.pins {
        table.row(format!("  at {:#x}", pin.address), pin_text(pin));
    }
    table.row(
        "statistics",
        match status.offered_features.iter().any(|name| name == "stats_vq") {
            true => interval_text(status.statistics_interval_seconds),
            false => "not offered".to_owned(),
        },
    );
    table.row("hinting", hinting_text(&status.hinting));
    table.row("offered features", list(&status.offered_features));
    let acked = status.acked_features.as_deref();
    table.row("acked features", acked.map_or("no driver yet".to_owned(), list));
    for queue in &status.queues {
        let runs = if queue.runs { queue.role.as_str() } else { "does not run" };
        table.row(format!("queue {}", queue.index), runs);
    }
    table.row("log level", format!("{:?}", status.log_level).to_lowercase());
    Ok(table.text())
}

fn interval_text(seconds: f64) -> String {
    if seconds == 0.0 { "when asked for".to_owned() } else { format!("every {seconds} s") }
}

pub(super) fn interval(answer: &str) -> Result<String, Error> {
    let interval: IntervalView = serde_json::from_str(answer)?;
    Ok(format!("statistics: {}\n", interval_text(interval.seconds.into())))
}

pub(super) fn log_level(answer: &str) -> Result<String, Error> {
    let LevelView { level } = serde_json::from_str(answer)?;
    Ok(format!("log level: {}\n", format!("{level:?}").to_lowercase()))
}

fn pin_text(pin: &PinView) -> String {
    let times = if pin.times > 1 { format!(", {} times", pin.times) } else { String::new() };
    format!("{}{times}", show_size(pin.bytes))
}

/// Each pin with the two numbers that `unpin` takes.
pub(super) fn pins(answer: &str) -> Result<String, Error> {
    let PinsView { pins } = serde_json::from_str(answer)?;
    if pins.is_empty() {
        return Ok("Nothing is pinned.\n".to_owned());
    }
    let mut table = Table::default();
    for pin in &pins {
        table.row(format!("{:#x} {}", pin.address, pin.bytes), pin_text(pin));
    }
    Ok(table.text())
}

/// A name of `DriverState` in words.
fn driver(state: &str) -> String {
    match state {
        "no_frontend" | "no_driver" => "none".to_owned(),
        "stopped" => "stopped, no queue runs".to_owned(),
        "not_reporting" => "runs, does not report".to_owned(),
        "no_report_yet" => "runs, no report yet".to_owned(),
        "reporting" => "runs, reports".to_owned(),
        // Of a newer daemon.
        other => other.to_owned(),
    }
}

pub(super) fn statistics(answer: &str) -> Result<String, Error> {
    let view: StatisticsView = serde_json::from_str(answer)?;
    let Some(sample) = view.sample else {
        return Ok("The guest has sent no statistics yet.\n".to_owned());
    };
    let mut table = Table::default();
    table.row("age", format!("{:.1} s", sample.age_seconds));
    for (name, value) in &sample.values {
        table.row(name, value.map_or("not sent".to_owned(), |value| number(name, value)));
    }
    Ok(table.text())
}

/// Everything that was counted and is not 0.
pub(super) fn counters(answer: &str) -> Result<String, Error> {
    let counters: Value = serde_json::from_str(answer)?;
    let mut table = Table::default();
    add(&mut table, "", &counters);
    if table.0.is_empty() {
        return Ok("All counters are 0.\n".to_owned());
    }
    Ok(table.text())
}

fn add(table: &mut Table, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if name.is_empty() { key.clone() } else { format!("{name} {key}") };
                add(table, &name, value);
            }
        }
        // A bucket: how long, and how many.
        Value::Array(items) => {
            for item in items {
                let bound = match item["le"].as_f64().map(Duration::try_from_secs_f64) {
                    Some(Ok(bound)) => format!("up to {bound:?}"),
                    _ => "longer".to_owned(),
                };
                table.row(format!("{name} {bound}"), item["count"].to_string());
            }
        }
        Value::Number(count) if count.as_f64() != Some(0.0) => {
            table.row(name, count.as_u64().map_or(count.to_string(), |count| number(name, count)));
        }
        _ => {}
    }
}

/// A value that is bytes if its name says so.
fn number(name: &str, value: u64) -> String {
    match name.split([' ', '_']).any(|word| word == "bytes") {
        true => show_size(value),
        false => value.to_string(),
    }
}

/// Whether a target waits for a driver.
pub(super) fn is_pending(answer: &str) -> Result<bool, Error> {
    Ok(serde_json::from_str::<TargetView>(answer)?.pending)
}

/// A target in both readings.
pub(super) fn target(answer: &str) -> Result<String, Error> {
    let target: TargetView = serde_json::from_str(answer)?;
    let taken = show_size(target.bytes);
    let text = match (target.leave_bytes, target.memory_bytes) {
        (Some(left), Some(memory)) => {
            format!(
                "balloon {taken}, leaves {} of {} to the guest",
                show_size(left),
                show_size(memory)
            )
        }
        _ => format!("balloon {taken}"),
    };
    let lease = target.lease_left_seconds.map(|left| lease(left, target.base_bytes));
    let lease = lease.map_or(String::new(), |lease| format!("; {lease}"));
    let pending = if target.pending { "; takes effect when the guest driver runs" } else { "" };
    Ok(format!("{text}{lease}{pending}\n"))
}

/// How long a target holds, and what holds then.
fn lease(left_seconds: f64, base_bytes: u64) -> String {
    format!("for {left_seconds:.0} s, then {}", show_size(base_bytes))
}

pub(super) fn paused(answer: &str) -> Result<String, Error> {
    let paused: PausedView = serde_json::from_str(answer)?;
    Ok(format!("discarding: {}\n", discarding(&paused)))
}

fn discarding(paused: &PausedView) -> String {
    match &paused.paused_by[..] {
        [] => "yes".to_owned(),
        causes => format!("no, paused by {}", causes.join(", ")),
    }
}

pub(super) fn hinting(answer: &str) -> Result<String, Error> {
    let hinting: HintingView = serde_json::from_str(answer)?;
    Ok(format!("hinting: {}\n", hinting_text(&hinting)))
}

fn hinting_text(hinting: &HintingView) -> String {
    match hinting.ranges {
        0 => hinting.state.clone(),
        ranges => format!("{}, {ranges} ranges of {}", hinting.state, show_size(hinting.bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_a_table_of_what_happened() {
        let answer = r#"{"named_bytes":{"reporting":2097152,"inflate":0},"discarded_bytes":7,
            "skipped_bytes":{"wraps":9,"empty":0},"chain_seconds":{"count":2,"sum":0.25,
            "buckets":[{"le":0.00005,"count":1},{"le":null,"count":1}]}}"#;
        let text = counters(answer).unwrap();
        let squeezed: Vec<_> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "named_bytes reporting 2 MiB",
            "skipped_bytes wraps 9 B",
            "chain_seconds sum 0.25",
            "chain_seconds buckets up to 50µs 1",
            "chain_seconds buckets longer 1",
        ] {
            assert!(squeezed.iter().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("empty"), "{text}");
        assert_eq!(counters("{}").unwrap(), "All counters are 0.\n");
    }
}
