// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use proptest::prelude::*;

use super::*;

const GAUGE: &str = "# HELP balloon_a A.\n# TYPE balloon_a gauge\n";

fn merged(pages: &[(&str, &str)]) -> (String, usize) {
    let mut merged = Merged::default();
    let refused = pages.iter().map(|(vm, page)| merged.add(vm, page)).sum();
    let mut text = String::new();
    merged.write(&mut text);
    (text, refused)
}

#[test]
fn family_is_written_once_with_all_vms() {
    let one = "# HELP balloon_x_bytes X.\n# TYPE balloon_x_bytes counter\n\
               # UNIT balloon_x_bytes bytes\nballoon_x_bytes_total{vm=\"b\",q=\"r\"} 1\n\
               # HELP balloon_a A.\n# TYPE balloon_a gauge\nballoon_a 7\n# EOF\n";
    let other = format!("{GAUGE}balloon_a{{vm=\"c\"}} 8\n# EOF\n");
    let (text, refused) = merged(&[("b", one), ("c", &other)]);
    assert_eq!(
        text,
        "# HELP balloon_a A.\n# TYPE balloon_a gauge\nballoon_a{vm=\"b\"} 7\nballoon_a{vm=\"c\"} 8\n\
         # HELP balloon_x_bytes X.\n# TYPE balloon_x_bytes counter\n\
         # UNIT balloon_x_bytes bytes\nballoon_x_bytes_total{vm=\"b\",q=\"r\"} 1\n"
    );
    assert_eq!(refused, 0);
}

#[test]
fn histogram_stays_whole() {
    let page = "# HELP balloon_h_seconds H.\n# TYPE balloon_h_seconds histogram\n\
                # UNIT balloon_h_seconds seconds\nballoon_h_seconds_sum 1.5\n\
                balloon_h_seconds_count 2\nballoon_h_seconds_bucket{le=\"1.0\"} 1\n\
                balloon_h_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";
    let (text, refused) = merged(&[("a", page)]);
    assert_eq!((text.lines().count(), refused), (7, 0));
    assert!(text.ends_with("balloon_h_seconds_bucket{vm=\"a\",le=\"+Inf\"} 2\n"));
}

#[test]
fn daemon_that_lies_changes_nothing_for_others() {
    let honest = format!("{GAUGE}balloon_a 1\n# EOF\n");
    let liar =
        "# HELP balloon_a A.\n# TYPE balloon_a counter\nballoon_a_total{vm=\"b\"} 9\n# EOF\n";
    let (text, _) = merged(&[("a", liar), ("b", &honest), ("c", &honest)]);
    assert_eq!(text, format!("{GAUGE}balloon_a{{vm=\"b\"}} 1\nballoon_a{{vm=\"c\"}} 1\n"));
}

#[test]
fn lines_that_no_daemon_has_are_refused() {
    for (page, count) in [
        ("balloon_a 1\n", 1),
        ("# TYPE balloon_a summary\nballoon_a 1\n", 1),
        ("# TYPE balloon_a gauge\n# TYPE balloon_a counter\n", 1),
        ("# TYPE balloon_host_a gauge\nballoon_host_a 1\n", 1),
        ("# TYPE up gauge\nup 1\n", 1),
        ("# TYPE balloon_a gauge\nballoon_b 1\nprocess_c 1\n", 2),
        ("# TYPE balloon_a gauge\n# UNIT balloon_a bytes\nballoon_a 1\n", 1),
        ("# HELP balloon_a \u{1b}[2J\n# TYPE balloon_a gauge\nballoon_a 1\n", 1),
        ("# TYPE balloon_a counter\nballoon_a 1\nballoon_a_total -1\nballoon_a_total NaN\n", 3),
        ("# TYPE balloon_a histogram\nballoon_a_bucket 1\n", 1),
        ("#\n# \n# x\n#x\n\n", 5),
    ] {
        assert_eq!(merged(&[("a", page)]), (String::new(), count), "{page}");
    }
    let twice =
        format!("{GAUGE}balloon_a 1\nballoon_a 2\n{GAUGE}balloon_a{{x=\"y\"}} 3\n# EOF\nmore");
    let (text, refused) = merged(&[("a", &twice)]);
    assert_eq!((text, refused), (format!("{GAUGE}balloon_a{{vm=\"a\"}} 1\n"), 2));
}

#[test]
fn page_has_a_limit() {
    let mut page = GAUGE.to_owned();
    for at in 0..3 * MOST_SAMPLES {
        page.push_str(&format!("balloon_a{{at=\"{at}\"}} 1\n"));
    }
    page.push_str(&format!("balloon_a{{at=\"{}\"}} 1\n", "x".repeat(MOST_LINE_BYTES)));
    let (text, refused) = merged(&[("a", &page)]);
    assert_eq!((text.lines().count(), refused), (MOST_SAMPLES + 2, 2 * MOST_SAMPLES + 1));
}

#[test]
fn vm_is_that_of_the_first_sample() {
    let page = format!("{GAUGE}balloon_a{{vm=\"x\\\"y\"}} 1\n");
    assert_eq!(vm_of(&page).as_deref(), Some("x\"y"));
    for page in ["", "# EOF\n", "balloon_a 1\n", "balloon_a{vm=\"\"} 1\n"] {
        assert_eq!(vm_of(page), None);
    }
}

/// Lines of daemons, and lines that are nearly such.
fn line() -> impl Strategy<Value = String> {
    let words = |words: &'static [&str]| prop::sample::select(words.to_vec());
    let families =
        ["balloon_a", "balloon_b_bytes", "balloon_c_seconds", "balloon_host_a", "up", ""];
    let family = move || prop::sample::select(families.to_vec());
    let kind = words(&["gauge", "counter", "histogram", "summary", "info"]);
    let suffix = words(&["", "_total", "_bucket", "_count", "_sum", "_created", "-"]);
    let labels = words(&[
        "",
        "{}",
        "{vm=\"x\"}",
        "{le=\"1\"}",
        "{le=\"0.5\"}",
        "{le=\"+Inf\"}",
        "{le=\"x\"}",
        "{le=\"1\",a=\"b\"}",
        "{a=\"\\\"",
        "{a=\"b\",vm=\"x\"}",
        "{a=\"\u{e4}\\n\"}",
        "{a=\"b\"",
    ]);
    let value = words(&["1", "0", "2.5", "-1", "NaN", "+Inf", "1e400", "1 2", ""]);
    let junk = words(&["", "# EOF", "#", "\u{0}", "# HELP", "\r", "balloon_a", "{} 1"]);
    prop_oneof![
        2 => family().prop_map(|name| format!("# HELP {name} It says \\x \"y\".")),
        4 => (family(), kind).prop_map(|(name, kind)| format!("# TYPE {name} {kind}")),
        1 => (family(), words(&["bytes", "seconds", "a"]))
            .prop_map(|(name, unit)| format!("# UNIT {name} {unit}")),
        12 => (family(), suffix, labels, value)
            .prop_map(|(name, suffix, labels, value)| format!("{name}{suffix}{labels} {value}")),
        1 => junk.prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever daemons answer, an independent reader of OpenMetrics takes the page.
    #[test]
    fn page_is_always_openmetrics(
        pages in prop::collection::vec(prop::collection::vec(line(), 0..40), 0..3),
    ) {
        let pages: Vec<String> = pages.iter().map(|lines| lines.join("\n")).collect();
        let named: Vec<(&str, &str)> =
            ["a", "b\"\\\n"].into_iter().zip(pages.iter().map(String::as_str)).collect();
        let own = "# TYPE balloon_host_x gauge\nballoon_host_x 1\n";
        let text = merged(&named).0 + own + "# EOF\n";
        openmetrics_parser::openmetrics::parse_openmetrics(&text)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
    }
}
