// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator sets can be read where it was set, over HTTP and with `ctl`.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::controlled::{BINARY, Controlled, MIB, start};

fn get(one: &Controlled, path: &str) -> Value {
    one.control.get(path).unwrap()
}

#[test]
fn target_read_without_and_with_driver_says_pending() {
    let one = start(&["--target", "8M"]);
    let unknown = json!({"bytes": 8 * MIB, "leave_bytes": null, "memory_bytes": null, "pending": true,
        "base_bytes": 8 * MIB, "lease_left_seconds": null});
    assert_eq!(get(&one, "/v1/target"), unknown);
    // What waits for a driver is no failure of the question.
    let shown = one.shown(&["target"]);
    assert_eq!(shown, "balloon 8 MiB; takes effect when the guest driver runs\n");

    let mut guest = one.attach();
    guest.use_balloon().unwrap();
    let set = one.control.done("PUT", "/v1/target", r#"{"bytes":1048576}"#).unwrap();
    assert_eq!((&get(&one, "/v1/target"), &set["pending"]), (&set, &json!(false)));
    assert_eq!(one.shown(&["target"]), "balloon 1 MiB, leaves 39 MiB of 40 MiB to the guest\n");
    let json: Value = serde_json::from_str(&one.shown(&["--json", "target"])).unwrap();
    assert_eq!(json, set);
}

#[test]
fn pins_read_twice_pinned_show_times() {
    let one = start(&[]);
    assert_eq!(get(&one, "/v1/pins"), json!({"pins": []}));
    assert_eq!(one.shown(&["pins"]), "Nothing is pinned.\n");
    for _ in 0..2 {
        one.shown(&["pin", "0x100000", "64K"]);
    }
    one.shown(&["pin", "0", "1"]);
    let pins = json!([{"address": 0, "bytes": 1, "times": 1},
        {"address": MIB, "bytes": 65536, "times": 2}]);
    assert_eq!(get(&one, "/v1/pins"), json!({"pins": pins}));
    assert_eq!(one.status()["pins"], pins);
    let shown = one.shown(&["pins"]);
    assert_eq!(shown, "0x0 1           1 B\n0x100000 65536  64 KiB, 2 times\n");
    // What is shown is what unpins.
    for _ in 0..2 {
        one.shown(&["unpin", "0x100000", "65536"]);
    }
    assert_eq!(get(&one, "/v1/pins")["pins"].as_array().unwrap().len(), 1);
}

#[test]
fn log_level_read_after_change_new_level() {
    let one = start(&[]);
    assert_eq!(get(&one, "/v1/log-level"), json!({"level": "info"}));
    assert_eq!(one.shown(&["log-level"]), "log level: info\n");
    assert_eq!(one.shown(&["log-level", "debug"]), "");
    assert_eq!(get(&one, "/v1/log-level"), json!({"level": "debug"}));
}

#[test]
fn interval_read_after_change_new_seconds() {
    let one = start(&["--statistics", "--statistics-interval", "5"]);
    assert_eq!(get(&one, "/v1/statistics-interval"), json!({"seconds": 5}));
    assert_eq!(one.shown(&["statistics-interval"]), "statistics: every 5 s\n");
    one.shown(&["statistics-interval", "0"]);
    assert_eq!(one.shown(&["statistics-interval"]), "statistics: when asked for\n");
}

#[test]
fn socket_from_environment_used_unless_option() {
    let (one, other) = (start(&[]), start(&[]));
    other.shown(&["log-level", "debug"]);
    let ctl = |variable: &Path, option: Option<&Path>| {
        let mut command = Command::new(BINARY);
        command.arg("ctl").env("BALLOON_CONTROL", variable);
        if let Some(path) = option {
            command.arg("--control-socket").arg(path);
        }
        let output = command.arg("log-level").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &errors)
    };
    let said = |text: &str| (Some(0), text.to_owned());
    assert_eq!(ctl(&one.path, None), said("log level: info\n"));
    assert_eq!(ctl(&other.path, None), said("log level: debug\n"));
    assert_eq!(ctl(&one.path, Some(&other.path)), said("log level: debug\n"));
    let (code, errors) = ctl(Path::new("/nonexistent/balloon"), None);
    assert_eq!(code, Some(3), "{errors}");
    assert!(errors.contains("no daemon answers at /nonexistent/balloon"), "{errors}");
    let (code, errors) = ctl(Path::new(""), None);
    assert_eq!(code, Some(2), "{errors}");
}
