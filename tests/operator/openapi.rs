// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every request and answer of a real daemon is one of `packaging/openapi.json`.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::collections::BTreeSet;
use std::thread;

use guest_driver::ram::GuestRam;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::control::{Answer, ControlSocket};
use vmm_integration::daemon::KeptDaemon;
use vmm_integration::measure::host::wait_until;

use crate::controlled::{BINARY, MIB, SOON, given_back, start};

/// The document, and what was seen of it.
struct Api {
    document: Value,
    answered: BTreeSet<String>,
}

impl Api {
    fn new() -> Self {
        let document = include_str!("../../packaging/openapi.json");
        let mut document: Value = serde_json::from_str(document).unwrap();
        // A client must take fields that are new; here each must be described.
        for schema in document["components"]["schemas"].as_object_mut().unwrap().values_mut() {
            if schema["properties"].is_object() {
                schema["additionalProperties"] = false.into();
            }
        }
        Self { document, answered: BTreeSet::new() }
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not described");
        operation
    }

    /// What the schema says against this JSON, if anything.
    fn faults(&self, schema: &Value, instance: &Value) -> Vec<String> {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        validator.iter_errors(instance).map(|error| error.to_string()).collect()
    }

    /// Asks the daemon, and checks both ways.
    fn ask(&mut self, control: &ControlSocket, method: &str, path: &str, body: &str) -> Answer {
        let operation = self.operation(method, path);
        let known = &operation["requestBody"];
        let answer = control.ask(method, path, body).unwrap();
        let is_done = answer.status == 200;
        let takes = match serde_json::from_str::<Value>(body) {
            Ok(body) => {
                let schema = &known["content"]["application/json"]["schema"];
                schema.is_object() && self.faults(schema, &body).is_empty()
            }
            Err(_) => body.is_empty() && known["required"] != json!(true),
        };
        assert!(takes || !is_done, "{method} {path} {body}: not described, and done");
        assert!(takes || answer.status == 400, "{method} {path} {body}: {answer:?}");
        let response = &operation["responses"][if is_done { "200" } else { "default" }];
        let kind = answer.head.split_once("\r\nContent-Type: ").unwrap().1;
        let kind = kind.split(['\r', ';']).next().unwrap();
        let schema = &response["content"][kind]["schema"];
        let instance = answer.json().unwrap_or_else(|_| answer.body.clone().into());
        let faults = self.faults(schema, &instance);
        assert!(faults.is_empty(), "{method} {path} {body}: {faults:?} in {instance}");
        if is_done {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            self.answered.insert(id);
        }
        answer
    }

    fn get_all(&mut self, control: &ControlSocket) {
        let paths = self.document["paths"].as_object().unwrap().clone();
        for path in paths.iter().filter(|(_, path)| path["get"].is_object()).map(|(name, _)| name) {
            assert_eq!(self.ask(control, "GET", path, "").status, 200);
        }
    }
}

/// Each request, and whether a daemon with a driver does it.
const REQUESTS: &[(&str, &str, &str, bool)] = &[
    ("GET", "/v1/status", "{}", false),
    ("PUT", "/v1/statistics-interval", r#"{"seconds":0}"#, true),
    ("PUT", "/v1/statistics-interval", r#"{"seconds":-1}"#, false),
    ("PUT", "/v1/statistics-interval", r#"{"seconds":86401}"#, false),
    ("POST", "/v1/statistics/refresh", "", true),
    ("PUT", "/v1/target", "", false),
    ("PUT", "/v1/target", r#"{"bytes":1048576}"#, true),
    ("PUT", "/v1/target", r#"{"leave_bytes":4096,"force":true}"#, true),
    ("PUT", "/v1/target", r#"{"bytes":1048576,"pages":1}"#, false),
    ("PUT", "/v1/target", r#"{"bytes":"1M"}"#, false),
    ("PUT", "/v1/target", r#"{"bytes":1048576,"lease_seconds":300}"#, true),
    ("PUT", "/v1/target", r#"{"bytes":0,"lease_seconds":0}"#, false),
    ("DELETE", "/v1/target", "", true),
    ("PUT", "/v1/target", r#"{"bytes":0}"#, true),
    ("POST", "/v1/park", r#"{"timeout_seconds":1}"#, true),
    ("POST", "/v1/unpark", "", true),
    ("POST", "/v1/reclaim", r#"{"timeout_seconds":1,"keep_bytes":4096}"#, true),
    ("POST", "/v1/reclaim", r#"{"keep":4096}"#, false),
    ("POST", "/v1/pause", "", true),
    ("POST", "/v1/reclaim", "", false),
    ("POST", "/v1/resume", "", true),
    ("PUT", "/v1/pins", r#"{"address":4096,"bytes":4096}"#, true),
    ("PUT", "/v1/pins", r#"{"address":4096}"#, false),
    ("DELETE", "/v1/pins", r#"{"address":0,"bytes":4096}"#, false),
    ("POST", "/v1/hinting/start", "", true),
    ("POST", "/v1/hinting/stop", "", true),
    ("POST", "/v1/upgrade", "", false),
    ("PUT", "/v1/log-level", r#"{"level":"loud"}"#, false),
    ("PUT", "/v1/log-level", r#"{"level":"debug"}"#, true),
];

#[test]
fn openapi_describes_each_request_and_answer() {
    let mut api = Api::new();
    let one = start(&["--statistics", "--free-page-hints"]);
    api.get_all(&one.control);
    let mut guest = one.attach();
    guest.use_balloon().unwrap();
    assert!(given_back(&mut guest, 8 * MIB));
    // A report of memory that it does not have, and a sample.
    let reporting = guest.reporting_queue().unwrap();
    let buffer = Buffer::writable(guest_driver::ram::Gpa(1 << 50), 4096);
    guest.submit_and_wait(reporting, &[buffer]).unwrap();
    let at = guest.scratch().start();
    guest.ram().write(at, &[&4_u16.to_le_bytes()[..], &MIB.to_le_bytes()].concat()).unwrap();
    let statistics = guest.index(BalloonQueue::Stats).unwrap();
    guest.ring(statistics).unwrap().add_chain(&[Buffer::readable(at, 10)]).unwrap();
    guest.publish(statistics).unwrap();
    for (method, path, body, is_done) in REQUESTS {
        let answer = api.ask(&one.control, method, path, body);
        assert_eq!(answer.status == 200, *is_done, "{method} {path} {body}: {answer:?}");
        api.get_all(&one.control);
    }
    thread::scope(|scope| {
        let reclaim = scope.spawn(|| one.control.ask("POST", "/v1/reclaim", "").unwrap());
        // Until there is one.
        while api.ask(&one.control, "DELETE", "/v1/reclaim", "").status != 200 {
            thread::yield_now();
        }
        assert_eq!(reclaim.join().unwrap().json().unwrap()["ended_by"], "interrupted");
    });
    let pin = r#"{"address":4096,"bytes":4096}"#;
    assert_eq!(api.ask(&one.control, "DELETE", "/v1/pins", pin).status, 200);
    assert_eq!(api.ask(&one.control, "POST", "/v1/counters/reset", "").status, 200);

    let kept = KeptDaemon::spawn(BINARY.as_ref(), &[] as &[&str]).unwrap();
    let control = ControlSocket::new(&kept.keeper().control_socket(), SOON);
    let upgraded = api.ask(&control, "POST", "/v1/upgrade", "").json().unwrap();
    // Before it the next daemon may not listen yet.
    wait_until(SOON, std::time::Duration::from_millis(2), || match control.get("/v1/status") {
        Ok(status) if status["pid"] != upgraded["pid"] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();

    let all = api.document["paths"].as_object().unwrap().values();
    let all = all.flat_map(|path| path.as_object().unwrap().values());
    let all: BTreeSet<_> = all.map(|one| one["operationId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(api.answered, all);
}

/// What the test above would not notice if the validator took everything.
#[test]
fn openapi_schema_wrong_answer_is_a_fault() {
    let api = Api::new();
    let one = start(&[]);
    let right = one.status();
    let content = &api.operation("GET", "/v1/status")["responses"]["200"]["content"];
    let schema = &content["application/json"]["schema"];
    assert_eq!(api.faults(schema, &right), [""; 0]);
    let mut wrong = vec![right.clone(); 4];
    wrong[0]["target_bytes"] = "4096".into();
    wrong[1]["target_bytes"] = (-1).into();
    wrong[2].as_object_mut().unwrap().remove("pins");
    wrong[3]["hinting"]["more"] = 1.into();
    for answer in wrong {
        assert_eq!(api.faults(schema, &answer).len(), 1, "{answer}");
    }
}
