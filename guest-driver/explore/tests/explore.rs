// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known to be wrong is found, and nothing is found in what is meant to work, in more
//! schedules than that took. A seed names one schedule.

use core::num::NonZero;

use explore::rounds::first_to_fall;
use explore::strategies::Strategy;
use explore::table::{self, Effort, Row, search_all};
use explore::{Kind, MODELS, model};

#[test]
fn exploration_finds_what_is_wrong_and_nothing_else() {
    // Without optimization a schedule takes several times as long.
    let (least, most_exhaustive) = match std::env::var_os("TEST_FULL") {
        _ if cfg!(debug_assertions) => (0, 5_000),
        Some(_) => (2_000, 50_000),
        None => (250, 5_000),
    };
    let effort = Effort {
        strategy: Strategy::Mixed,
        most: 20_000,
        least,
        // The page has more: this runs after each change.
        margin: 2,
        preemptions: 3,
        most_exhaustive,
        jobs: table::jobs(),
    };
    for model in MODELS {
        let results = search_all(model, effort, |row| println!("{}", row.line()));
        let unexpected: Vec<String> =
            results.rows().filter(|row| !row.as_expected()).map(Row::line).collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_jobs() {
    let lines = |jobs| {
        let mut lines = Vec::new();
        let effort = Effort {
            strategy: Strategy::Mixed,
            most: 3,
            least: 3,
            margin: 0,
            preemptions: 0,
            most_exhaustive: 3,
            jobs: NonZero::new(jobs).expect("some"),
        };
        let model = model("reporting").expect("it is there");
        let results = search_all(model, effort, |row| lines.push(row.line()));
        assert_eq!(lines, results.rows().map(Row::line).collect::<Vec<_>>());
        lines
    };
    assert_eq!(lines(3), lines(1));
}

#[test]
fn a_seed_repeats_what_a_search_has_found() {
    let names = ["section-bit-cleared-after-scan", "trust-the-lockless-look"];
    for strategy in [Strategy::Mixed, Strategy::Random, Strategy::Pct] {
        for name in names {
            let case = model("reporting").and_then(|model| model.case(name)).expect(name);
            let first = Row::search(case.clone(), strategy, 0..20_000).found.violation;
            let (seed, _) = first.clone().expect(name);
            let again = Row::search(case, strategy, seed..seed + 1).found;
            assert_eq!((again.violation, again.schedules), (first, 1), "{name}, {strategy:?}");
        }
    }
}

#[test]
fn rounds_end_with_the_first_that_falls() {
    let case = |name: &str| model("reporting").and_then(|model| model.case(name)).expect(name);
    let (good, bad) = ("section-bit-isolate-churn", "trust-the-lockless-look");
    let expected = Row::search(case(bad), Strategy::Mixed, 0..20_000).found;
    let rows = first_to_fall(vec![case(good), case(bad)], Strategy::Mixed, 20_000);
    let fallen: Vec<_> = rows.iter().map(|row| (&*row.case.name, &row.found.violation)).collect();
    assert_eq!(fallen, [(bad, &expected.violation)]);
    assert_eq!(rows[0].found.schedules, expected.schedules);
    let rows = first_to_fall(vec![case(good), case(good)], Strategy::Mixed, 100);
    let stood: Vec<_> = rows.iter().map(|row| (row.found.schedules, row.as_expected())).collect();
    assert_eq!(stood, [(100, true), (100, true)]);
}

#[test]
fn json_of_a_search_has_what_help_documents() {
    let case = |name: &str| model("reporting").and_then(|model| model.case(name)).expect(name);
    let row = Row::search(case("trust-the-lockless-look"), Strategy::Mixed, 0..20_000);
    let (seed, violation) = row.found.violation.clone().expect("it is known to be wrong");
    let json = row.json();
    assert_eq!(json["configuration"], "trust-the-lockless-look");
    assert_eq!((&json["kind"], &json["cut_off"]), (&"known-bad".into(), &0.into()));
    assert_eq!((&json["seed"], &json["schedules"]), (&seed.into(), &(seed + 1).into()));
    assert_eq!(json["invariant"], violation.invariant);
    assert_eq!((&json["what"], &json["as_expected"]), (&violation.what.into(), &true.into()));
    let json = Row::search(case("section-bit-isolate-churn"), Strategy::Mixed, 0..10).json();
    assert!(json["seed"].is_null() && json["invariant"].is_null() && json["what"].is_null());
}

/// Every command of the pages repeats what its row says.
#[test]
fn the_pages_of_findings_are_true() {
    for model in MODELS {
        let path = format!("../../docs/research/exploration/{}.md", model.name);
        let page = std::fs::read_to_string(&path).expect(&path);
        let mut checked = 0;
        for row in page
            .lines()
            .filter(|line| line.contains("`cargo explore --model ") && line.contains("--seed "))
        {
            let after = |option: &str| {
                let (_, rest) = row.split_once(option).expect(row);
                rest.trim_start().split(['`', ' ']).next().expect(row).to_owned()
            };
            assert_eq!(after("--model"), model.name, "{row}");
            let case = model.case(&after("--configuration")).expect(row);
            let seed: u64 = after("--seed").parse().expect(row);
            let found = Row::search(case, Strategy::Mixed, seed..seed + 1).found;
            let (_, violation) = found.violation.expect(row);
            assert!(row.contains(&format!("| `{}`: ", violation.invariant)), "{row}: {violation}");
            checked += 1;
        }
        let wrong =
            (model.cases)().into_iter().filter(|case| case.kind != Kind::Good && !case.small);
        assert_eq!(checked, wrong.count(), "{path} lacks a row: cargo explore --table writes it");
    }
}
