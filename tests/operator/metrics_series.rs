// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which series there are, what they are called, and that JSON has the same values.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeMap;

use guest_driver::ram::{Gpa, GuestRam};
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::Value;

use crate::controlled::{Controlled, MIB, given_back, start};

/// The series with their values, in the text format.
fn scrape(one: &Controlled) -> BTreeMap<String, f64> {
    let page = one.control.ask("GET", "/metrics", "").unwrap().body;
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| line.rsplit_once(' ').unwrap());
    series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// A guest that has used every queue but the hints', with statistics of which each is its tag.
fn busy(one: &Controlled) -> vmm_integration::frontend::Attachment {
    let mut guest = one.attach();
    guest.use_balloon().unwrap();
    assert!(given_back(&mut guest, 8 * MIB));
    let reporting = guest.reporting_queue().unwrap();
    guest.submit_and_wait(reporting, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    let at = guest.scratch().start();
    for queue in [BalloonQueue::Inflate, BalloonQueue::Deflate] {
        guest.ram().write(at, &(9 * MIB / 4096).to_le_bytes()[..4]).unwrap();
        let queue = guest.index(queue).unwrap();
        guest.submit_and_wait(queue, &[Buffer::readable(at, 4)]).unwrap();
    }
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    let statistics: Vec<u8> = (0..16_u16)
        .flat_map(|tag| [&tag.to_le_bytes()[..], &u64::from(tag).to_le_bytes()].concat())
        .collect();
    guest.ram().write(at, &statistics).unwrap();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    guest.ring(queue).unwrap().add_chain(&[Buffer::readable(at, 160)]).unwrap();
    guest.publish(queue).unwrap();
    let taken = || match one.control.get("/v1/statistics").unwrap()["sample"].is_object() {
        true => Ok(()),
        false => Err("no statistics".to_owned()),
    };
    vmm_integration::measure::host::wait_until(
        crate::controlled::SOON,
        std::time::Duration::from_millis(1),
        taken,
    )
    .unwrap();
    guest
}

#[test]
fn series_of_fresh_daemon_are_few() {
    let one = start(&["--statistics"]);
    let series = scrape(&one);
    println!("fresh: {} series", series.len());
    assert!(series.len() <= 16, "{series:?}");
    let is_there = |name: &str| series.keys().any(|series| series.starts_with(name));
    for name in [
        "balloon_build_info{version=\"",
        "balloon_driver{state=\"no_frontend\"}",
        "balloon_discarded_bytes_total",
        "balloon_discard_failures_total",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(is_there(name), "{name}: {series:?}");
    }
}

#[test]
fn series_of_busy_daemon_are_what_happened() {
    let one = start(&["--statistics"]);
    let mut guest = busy(&one);
    let before = scrape(&one);
    println!("busy: {} series", before.len());
    assert!(before.len() < 60, "{before:?}");
    for name in [
        "balloon_skipped_bytes_total{reason=\"outside_memory\"}",
        "balloon_chains_total{queue=\"inflate\"}",
        "balloon_chain_seconds_bucket{le=\"+Inf\"}",
        "balloon_guest_oom_kills_total",
        "balloon_guest_disk_cache_bytes",
    ] {
        assert!(before.contains_key(name), "{name}: {before:?}");
    }
    let is_there = |name: &str, series: &BTreeMap<String, f64>| {
        series.keys().any(|series| series.starts_with(name))
    };
    let none = ["balloon_paused_by", "balloon_pins", "balloon_waiting", "balloon_errors"];
    for name in none {
        assert!(!is_there(name, &before), "{name}: {before:?}");
    }
    one.shown(&["pause"]);
    one.shown(&["pin", "0", "4K"]);
    assert!(!given_back(&mut guest, 8 * MIB));
    let after = scrape(&one);
    for name in [
        "balloon_paused_by{cause=\"operator\"}",
        "balloon_pins",
        "balloon_skips_total{reason=\"paused\"}",
    ] {
        assert!(after.contains_key(name), "{name}: {after:?}");
    }
    one.shown(&["resume"]);
    assert!(!is_there("balloon_paused_by", &scrape(&one)));
}

/// Each row of the page that names a field.
#[test]
fn series_have_the_values_of_their_fields() {
    let one = start(&["--statistics", "--target", "1M"]);
    let _guest = busy(&one);
    let series = scrape(&one);
    let (mut compared, mut differing) = (0, Vec::new());
    for row in include_str!("../../docs/user/metrics.md").lines() {
        let cells: Vec<_> = row.split('`').collect();
        let Some([field, " of ", path]) = cells.get(cells.len().saturating_sub(4)..cells.len() - 1)
        else {
            continue;
        };
        let name = cells[1];
        let json = one.control.get(path).unwrap();
        let value = &json[field.split('.').next().unwrap()];
        let value = field.split('.').skip(1).fold(value, |value, field| &value[field]);
        // Each is a look of its own at the memory's files, for which a busy machine may lack the time.
        if name == "balloon_memory_resident_bytes" && value.is_null() == series.contains_key(name) {
            continue;
        }
        let mut compare = |series_name: &str, value: f64| match series.get(series_name) {
            // Time has gone by.
            Some(found) if *found == value || name.ends_with("age_seconds") => compared += 1,
            None if value == 0.0 => {}
            found => differing.push(format!("{series_name}: {found:?}, {field} is {value}")),
        };
        match value {
            Value::Bool(value) => compare(name, f64::from(u8::from(*value))),
            Value::Number(value) => compare(name, value.as_f64().unwrap()),
            Value::String(value) => {
                let label = row.split('|').nth(3).unwrap().trim().trim_matches('`');
                compare(&format!("{name}{{{label}=\"{value}\"}}"), 1.0);
            }
            Value::Object(values) if name == "balloon_chain_seconds" => {
                compare("balloon_chain_seconds_count", values["count"].as_f64().unwrap());
                compare("balloon_chain_seconds_sum", values["sum"].as_f64().unwrap());
            }
            Value::Object(values) => {
                let label = row.split('|').nth(3).unwrap().trim().trim_matches('`');
                for (key, value) in values {
                    compare(&format!("{name}{{{label}=\"{key}\"}}"), value.as_f64().unwrap());
                }
            }
            Value::Array(values) => assert!(values.is_empty(), "{row}"),
            Value::Null => assert!(!series.contains_key(name), "{row}"),
        }
    }
    assert!(compared > 35 && differing.is_empty(), "{compared}: {differing:#?}");
}

#[test]
fn series_of_named_vm_all_have_its_label() {
    let one = start(&["--statistics", "--name", "a \"b\" \\ c"]);
    let _guest = busy(&one);
    let series = scrape(&one);
    assert!(series.keys().all(|name| name.contains(r#"vm="a \"b\" \\ c""#)), "{series:?}");
    let name = r#"balloon_driver{vm="a \"b\" \\ c",state="reporting"}"#;
    assert!(series.contains_key(name), "{series:?}");
    assert_eq!(one.status()["name"], "a \"b\" \\ c");
    assert!(one.shown(&["status"]).starts_with("name "));
    assert_eq!(start(&[]).status()["name"], Value::Null);
}
