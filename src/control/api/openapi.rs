// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `packaging/openapi.json`: every request and answer, described from its type.
//!
//! Built by the tests alone, so that the daemon carries none of it. `UPDATE_GENERATED=1 cargo test --lib
//! openapi` writes the file.

use std::collections::{BTreeMap, BTreeSet};

use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::ROUTES;
use super::log_level::LevelView;
use super::pins::PinBody;
use super::reclaim::InterruptView;
use super::statistics::IntervalView;
use super::target::{TargetRequest, TargetView};
use super::upgrade::{UpgradeRequest, UpgradeView};
use crate::control::counters::CountersView;
use crate::control::http::ErrorBody;
use crate::control::reclaim::{ReclaimRequest, ReclaimView};
use crate::control::views::{HintingView, PausedView, PinsView, StatisticsView, StatusView};
use crate::control::{exposition, plain_text};
use crate::tests::generated;

const FILE: &str = "packaging/openapi.json";

const PROMISE: &str = "Control and monitoring of one vhost-device-balloon, over the Unix socket of \
    --control-socket. Routes, fields and values of fields may be added to /v1; none is removed or changes \
    its meaning. A client ignores what it does not know. Sizes are bytes and times are seconds. A request \
    that is refused has changed nothing, unless its error says so. HEAD is answered wherever GET is.";

const REFUSED: &str = "The request was refused: 400 for a wrong body, 404 for an unknown path or pin, 405 \
    for an unknown method, 409 if the present state does not allow it, 411, 413 or 431 for a request that \
    is no request or too large, 500 or 503 if the system does not let the daemon carry it out, 504 if a \
    discarding call did not end in time.";

type Shape = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What a route is for, the body that it takes, whether it must have one, and its answer.
type Operation = (&'static str, Option<(Shape, bool)>, Option<Shape>);

/// The operation of a route; none if it is missing here.
fn operation(method: &str, path: &str) -> Option<Operation> {
    let takes = |shape: Shape| Some((shape, true));
    let may_take = |shape: Shape| Some((shape, false));
    let gives = |shape: Shape| Some(shape);
    Some(match (method, path) {
        ("GET", "/v1/status") => (
            "Show the state of the daemon, the VMM and the guest driver.",
            None,
            gives(of::<StatusView>),
        ),
        ("GET", "/v1/statistics") => {
            ("Show the last memory statistics of the guest.", None, gives(of::<StatisticsView>))
        }
        ("POST", "/v1/statistics/refresh") => (
            "Ask the guest for statistics. The answer has the last ones and does not wait for the guest.",
            None,
            gives(of::<StatisticsView>),
        ),
        ("GET", "/v1/statistics-interval") => {
            ("Show the interval between two polls.", None, gives(of::<IntervalView>))
        }
        ("PUT", "/v1/statistics-interval") => (
            "Set the interval between two polls.",
            takes(of::<IntervalView>),
            gives(of::<IntervalView>),
        ),
        ("GET", "/v1/target") => ("Show the balloon's target.", None, gives(of::<TargetView>)),
        ("PUT", "/v1/target") => (
            "Set the memory that the balloon takes from the guest, or leaves to it, for good or for a lease.",
            takes(of::<TargetRequest>),
            gives(of::<TargetView>),
        ),
        ("DELETE", "/v1/target") => {
            ("End the lease: the base target holds again.", None, gives(of::<TargetView>))
        }
        ("POST", "/v1/reclaim") => (
            "Squeeze available memory out of the guest and let go. The answer comes at the end. A client \
             that hangs up ends it.",
            may_take(of::<ReclaimRequest>),
            gives(of::<ReclaimView>),
        ),
        ("DELETE", "/v1/reclaim") => (
            "Have the reclaim or the park in progress let go now. Its own request is answered then.",
            None,
            gives(of::<InterruptView>),
        ),
        ("POST", "/v1/park") => (
            "Reclaim, then pause discarding until unpark.",
            may_take(of::<ReclaimRequest>),
            gives(of::<ReclaimView>),
        ),
        ("POST", "/v1/unpark") => {
            ("Resume discarding after a park.", None, gives(of::<PausedView>))
        }
        ("POST", "/v1/pause") => (
            "Stop discarding until resume. The answer waits for a discarding call in progress.",
            None,
            gives(of::<PausedView>),
        ),
        ("POST", "/v1/resume") => {
            ("Resume discarding after a pause.", None, gives(of::<PausedView>))
        }
        ("GET", "/v1/pins") => ("Show the memory that is pinned.", None, gives(of::<PinsView>)),
        ("PUT", "/v1/pins") => (
            "Pin memory that must not be discarded. The answer waits for a discarding call in progress.",
            takes(of::<PinBody>),
            gives(of::<PinBody>),
        ),
        ("DELETE", "/v1/pins") => {
            ("Remove one pin of exactly this memory.", takes(of::<PinBody>), gives(of::<PinBody>))
        }
        ("POST", "/v1/hinting/start") => {
            ("Start a round of free page hinting.", None, gives(of::<HintingView>))
        }
        ("POST", "/v1/hinting/stop") => {
            ("Stop the round of free page hinting.", None, gives(of::<HintingView>))
        }
        ("POST", "/v1/upgrade") => (
            "Have the program that is at the daemon's path go on with the VM.",
            may_take(of::<UpgradeRequest>),
            gives(of::<UpgradeView>),
        ),
        ("GET", "/v1/counters") => {
            ("Show the counters since the last reset.", None, gives(of::<CountersView>))
        }
        ("POST", "/v1/counters/reset") => {
            ("Reset the counters to 0; metrics continue.", None, gives(of::<CountersView>))
        }
        ("GET", "/v1/log-level") => {
            ("Show the least important level that is logged.", None, gives(of::<LevelView>))
        }
        ("PUT", "/v1/log-level") => (
            "Set the least important level that is logged.",
            takes(of::<LevelView>),
            gives(of::<LevelView>),
        ),
        ("GET", "/metrics") => (
            "Show the metrics for Prometheus, since the daemon started. An Accept header that prefers it gets \
             OpenMetrics.",
            None,
            None,
        ),
        _ => return None,
    })
}

fn generator(contract: Contract) -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.contract = contract;
    });
    settings.into_generator()
}

fn document() -> Value {
    let mut requests = generator(Contract::Deserialize);
    let mut answers = generator(Contract::Serialize);
    let mut paths = BTreeMap::<&str, Map<String, Value>>::new();
    let json_of = |schema: Schema| json!({"application/json": {"schema": schema}});
    for route in &ROUTES {
        let known = operation(route.method, route.path);
        let (what, body, answer) =
            known.unwrap_or_else(|| panic!("{} {} is not described", route.method, route.path));
        let content = match answer {
            Some(shape) => json_of(shape(&mut answers)),
            None => [plain_text::CONTENT_TYPE, exposition::CONTENT_TYPE]
                .into_iter()
                .filter_map(|kind| kind.split(';').next())
                .map(|kind| (kind.to_owned(), json!({"schema": {"type": "string"}})))
                .collect::<Map<_, _>>()
                .into(),
        };
        let refused = json_of(answers.subschema_for::<ErrorBody<'_>>());
        let method = route.method.to_lowercase();
        let words = route.path.trim_start_matches("/v1").replace(['/', '-'], "_");
        let mut operation = json!({
            "operationId": method.clone() + &words,
            "summary": what,
            "responses": {
                "200": {"description": "The request was done.", "content": content},
                "default": {"description": REFUSED, "content": refused},
            },
        });
        if let Some((shape, required)) = body {
            let content = json_of(shape(&mut requests));
            operation["requestBody"] = json!({"required": required, "content": content});
        }
        paths.entry(route.path).or_default().insert(method, operation);
    }
    let mut schemas = answers.take_definitions(true);
    for (name, schema) in requests.take_definitions(true) {
        let other = schemas.insert(name.clone(), schema.clone());
        assert!(
            other.is_none_or(|other| other == schema),
            "{name} is asked and answered differently"
        );
    }
    let mut document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "vhost-device-balloon",
            "version": env!("CARGO_PKG_VERSION"),
            "description": PROMISE,
            "license": {
                "name": env!("CARGO_PKG_LICENSE"),
                "identifier": env!("CARGO_PKG_LICENSE"),
            },
        },
        "servers": [{
            "url": "http://localhost",
            "description": "Any host: curl --unix-socket PATH http://localhost/v1/status",
        }],
        "paths": paths,
        "components": {"schemas": schemas},
    });
    flow(&mut document);
    document
}

/// Has every description be one line: those of types are wrapped as in the source.
fn flow(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            }
            fields.values_mut().for_each(flow);
        }
        Value::Array(items) => items.iter_mut().for_each(flow),
        _ => {}
    }
}

#[test]
fn openapi_document_is_that_of_the_types() {
    let text = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    generated::check(FILE, &text, |found| {
        serde_json::from_str::<Value>(found).is_ok_and(|found| found == document())
    });
}

/// What tells the unit of a number, in its name or its description.
const UNITS: [&str; 9] = [
    "bytes",
    "seconds",
    "how often",
    "number of",
    "address",
    " id",
    "index",
    "count",
    "times that",
];

#[test]
fn openapi_every_field_has_description_and_unit() {
    let document = document();
    let mut fields = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(schema["description"].is_string(), "{name} has no description");
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            fields += 1;
            let description = schema["description"].as_str();
            let description =
                description.unwrap_or_else(|| panic!("{name}.{field} has no description"));
            assert!(!description.contains("[`"), "{name}.{field} links into the source");
            let types = schema["type"].to_string() + &schema["additionalProperties"].to_string();
            if types.contains("integer") || types.contains("number") {
                let said = format!("{field} {description}").to_lowercase();
                assert!(
                    UNITS.iter().any(|unit| said.contains(unit)),
                    "{name}.{field}: no unit: {said}"
                );
            }
        }
    }
    assert!(fields > 70, "{fields}");
}

#[test]
fn openapi_operation_ids_are_unique() {
    let document = document();
    let operations = document["paths"].as_object().unwrap().values();
    let operations = operations.flat_map(|path| path.as_object().unwrap().values());
    let ids: Vec<_> = operations.map(|one| one["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), ROUTES.len());
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}
