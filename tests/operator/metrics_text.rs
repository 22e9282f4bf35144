// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics as a parser of OpenMetrics understands them that is nobody's here.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use openmetrics_parser::openmetrics::parse_openmetrics;
use openmetrics_parser::{
    HistogramValue, MetricsExposition, OpenMetricsMetricFamily, OpenMetricsType, OpenMetricsValue,
};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);

type Page = MetricsExposition<OpenMetricsType, OpenMetricsValue>;

/// Parses what a scrape answers, and checks what a parser does not.
fn scrape(control: &ControlSocket) -> Page {
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let answer = control.ask_with("GET", "/metrics", accept, "").unwrap();
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.lines().any(|line| line == kind), "{}", answer.head);
    let text = answer.body;
    // The parser refuses the unit of a histogram, which OpenMetrics allows: only what has no unit by
    // its nature, info and state sets, must have none.
    let unit = "# UNIT balloon_chain_seconds seconds\n";
    assert!(text.matches(unit).count() <= 1, "{text}");
    let page = parse_openmetrics(&text.replace(unit, ""));
    let page = page.unwrap_or_else(|error| panic!("{error}\n{text}"));
    for (name, family) in &page.families {
        assert!(name.starts_with("balloon_") || name.starts_with("process_"), "{name}");
        assert!(!family.help.is_empty(), "{name}");
        assert!(name.ends_with(&family.unit), "{name} in {}", family.unit);
        let known = matches!(
            (family.family_type, family.unit.as_str()),
            (OpenMetricsType::Counter | OpenMetricsType::Gauge, "" | "bytes" | "seconds")
                | (OpenMetricsType::Histogram, "")
        );
        assert!(known, "{name}: {:?} in {:?}", family.family_type, family.unit);
        assert!(family.iter_samples().next().is_some(), "{name}");
    }
    page
}

fn number(value: &OpenMetricsValue) -> f64 {
    match value {
        OpenMetricsValue::Counter(counter) => counter.value.as_f64(),
        OpenMetricsValue::Gauge(gauge) => gauge.as_f64(),
        other => panic!("{other:?}"),
    }
}

/// The only sample of a family, or the one whose only label has this value.
fn value(page: &Page, family: &str, label: Option<&str>) -> u64 {
    let family = &page.families[family];
    let matches = |found: Option<&str>| found == label;
    let sample = family.iter_samples().find(|sample| {
        let labels = sample.get_labelset();
        let found = labels.as_ref().ok().and_then(|labels| labels.iter_values().next());
        matches(found.map(String::as_str))
    });
    let sample = sample.unwrap_or_else(|| panic!("{label:?} of {family:?}"));
    let whole = format!("{:.0}", number(&sample.value));
    whole.parse().unwrap()
}

fn histogram(page: &Page) -> &HistogramValue {
    let family: &OpenMetricsMetricFamily = &page.families["balloon_chain_seconds"];
    match &family.iter_samples().next().unwrap().value {
        OpenMetricsValue::Histogram(histogram) => histogram,
        other => panic!("{other:?}"),
    }
}

/// The names in the table of the documentation.
fn documented() -> BTreeSet<String> {
    let rows = include_str!("../../docs/user/metrics.md").lines();
    let names = rows.filter_map(|row| row.strip_prefix("| `")?.split_once("` | "));
    let names = names.filter(|(_, rest)| {
        ["counter", "gauge", "histogram"].iter().any(|kind| rest.starts_with(kind))
    });
    names.map(|(name, _)| name.trim_end_matches("_total").to_owned()).collect()
}

#[test]
fn a_parser_of_others_understands_all_metrics() {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, ["--statistics"]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    let idle = scrape(&control);
    assert_eq!(value(&idle, "balloon_connected", None), 0);

    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.write_pattern(GpaRange::new(Gpa(8 * MIB), MIB).unwrap(), 1).unwrap();
    let reporting = guest.reporting_queue().unwrap();
    let buffers = [Buffer::writable(Gpa(8 * MIB), 1 << 20), Buffer::writable(Gpa(1 << 50), 4096)];
    guest.submit_and_wait(reporting, &buffers).unwrap();
    let at = guest.scratch().start();
    ram.write(at, &[&4_u16.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()).unwrap();
    let statistics = guest.index(BalloonQueue::Stats).unwrap();
    guest.ring(statistics).unwrap().add_chain(&[Buffer::readable(at, 10)]).unwrap();
    guest.publish(statistics).unwrap();
    // The last of it: from here on every metric is there. A chain is counted after what it brings.
    let page = wait_until(SOON, LOOK_EVERY, || {
        let page = scrape(&control);
        let there = page.families.contains_key("balloon_guest_statistics_age_seconds")
            && page.families.contains_key("balloon_memory_resident_bytes")
            && histogram(&page).count == Some(2);
        if there { Ok(page) } else { Err(format!("{:?}", page.families.keys())) }
    })
    .unwrap();

    let names: BTreeSet<String> = page.families.keys().cloned().collect();
    let documented = documented();
    assert!(documented.len() > 40 && names.is_subset(&documented), "{names:?}");
    for (family, label, expected) in [
        ("balloon_connected", None, 1),
        ("balloon_chains", Some("reporting"), 1),
        ("balloon_ranges", Some("reporting"), 2),
        ("balloon_named_bytes", Some("reporting"), MIB + 4096),
        ("balloon_discarded_bytes", None, MIB),
        ("balloon_skipped_bytes", Some("outside_memory"), 4096),
        ("balloon_skips", Some("outside_memory"), 1),
        ("balloon_discard_failures", None, 0),
    ] {
        assert_eq!(value(&page, family, label), expected, "{family} {label:?}");
    }
    // A counter never goes back.
    for (name, family) in &idle.families {
        if family.family_type == OpenMetricsType::Counter {
            for (before, now) in family.iter_samples().zip(page.families[name].iter_samples()) {
                assert!(number(&before.value) <= number(&now.value), "{name}");
            }
        }
    }
    // That buckets are cumulative and end at infinity, the parser has seen to.
    let time = histogram(&page);
    assert!(time.buckets.is_sorted_by(|a, b| a.upper_bound < b.upper_bound));
    let last = time.buckets.last().unwrap().count.as_i64().unwrap();
    assert_eq!(time.count, u64::try_from(last).ok());
    // Reporting's chain and the statistics'.
    assert_eq!(last, 2);
    assert!(time.sum.unwrap().as_f64() > 0.0);
}
