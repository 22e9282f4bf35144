// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The text format of Prometheus, version 0.0.4, out of OpenMetrics 1.0.
//!
//! The two differ in little that is used here: a counter's family has the `_total` of its sample,
//! and there are no units and no end.

use std::fmt::Write;

/// What [`from_openmetrics`] is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same metrics for a reader of the text format of Prometheus.
pub fn from_openmetrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // Help comes before the type that says how the family is called.
    let mut help = None;
    for line in page.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                // Writing to memory does not fail.
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_family_is_called_like_its_sample() {
        let page = "# HELP a_bytes Some.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                    a_bytes_total{b=\"c\"} 1\n# HELP d A d.\n# TYPE d gauge\nd 1.5\n# EOF\n";
        assert_eq!(
            from_openmetrics(page),
            "# HELP a_bytes_total Some.\n# TYPE a_bytes_total counter\na_bytes_total{b=\"c\"} 1\n\
             # HELP d A d.\n# TYPE d gauge\nd 1.5\n"
        );
    }
}
