// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which of two text formats a scraper asks for (RFC 9110, 12.5.1).

/// Whether these `Accept` fields prefer OpenMetrics 1.0 to what everything else gets, the text
/// format of Prometheus. It must be named: a wildcard asks for nothing in particular.
pub fn wants_openmetrics<'a>(fields: impl Iterator<Item = &'a [u8]>) -> bool {
    let fields = fields.filter_map(|field| std::str::from_utf8(field).ok());
    let (mut openmetrics, mut text) = (0, 0);
    for range in fields.flat_map(|field| field.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let Some(kind) = parts.next() else { continue };
        let (mut weight, mut version) = (1000, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim() {
                name if name.eq_ignore_ascii_case("q") => weight = thousandths(value),
                name if name.eq_ignore_ascii_case("version") => version = Some(value),
                _ => {}
            }
        }
        // Of several versions of each there is one here.
        let is = |name: &str, ours| {
            kind.eq_ignore_ascii_case(name) && version.is_none_or(|version| version == ours)
        };
        if is("application/openmetrics-text", "1.0.0") {
            openmetrics = openmetrics.max(weight);
        } else if is("text/plain", "0.0.4") {
            text = text.max(weight);
        }
    }
    openmetrics > 0 && openmetrics >= text
}

/// A weight from 0 to 1, as thousandths; 0 for what is none.
fn thousandths(value: &str) -> u32 {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    match (whole, format!("{fraction:0<3}").parse()) {
        ("0", Ok(weight)) if digits => weight,
        ("1", Ok(0)) if digits => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_given_where_it_is_preferred() {
        let wants =
            |fields: &[&str]| wants_openmetrics(fields.iter().map(|field| field.as_bytes()));
        // Prometheus 3.
        assert!(wants(&["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
            escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"]));
        assert!(wants(&["application/openmetrics-text"]));
        assert!(wants(&["text/plain;q=0.5", "Application/OpenMetrics-Text; Version=\"1.0.0\""]));
        for other in [
            &[][..],
            &["*/*"],
            &["application/*"],
            &["text/plain;version=0.0.4"],
            &["text/plain, application/openmetrics-text;q=0.999"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=much"],
            &["application/openmetrics-text;version=0.0.1"],
            &["application/json", "\u{1f388};;,=,"],
        ] {
            assert!(!wants(other), "{other:?}");
        }
    }
}
