// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file of [PSI](https://docs.kernel.org/accounting/psi.html): `some avg10=1.50 ... total=12`.

/// Share of the last 10 seconds, in percent, in which some task waited.
pub(super) fn some_avg10(text: &str) -> Option<f64> {
    field(text, "avg10=")?.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Microseconds that some task has waited since the boot.
pub(super) fn some_total(text: &str) -> Option<u64> {
    field(text, "total=")?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split(' ').find_map(|field| field.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_some() {
        let text = "full avg10=9.00 total=9\nsome avg10=1.50 avg60=2.00 avg300=3.00 total=12\n";
        assert_eq!((some_avg10(text), some_total(text)), (Some(1.5), Some(12)));
        for bad in ["", "some", "some avg10=x total=-1", "some avg10=NaN total=", "full total=1"] {
            assert_eq!((some_avg10(bad), some_total(bad)), (None, None), "{bad}");
        }
    }
}
