// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers as text for narrow columns.

use super::row::Pressure;

const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];

/// Bytes with three digits at most and a suffix for powers of 1024: `512M`, `1.5G`.
pub(super) fn size(bytes: u64) -> String {
    let mut power = 0;
    while power + 1 < UNITS.len() && rounded(bytes, power) >= 1000.0 {
        power += 1;
    }
    let value = rounded(bytes, power);
    let digits = usize::from(power > 0 && value < 99.95 && value.fract() > 0.0);
    format!("{value:.digits$}{}", UNITS[power])
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
fn rounded(bytes: u64, power: usize) -> f64 {
    let value = bytes as f64 / (1_u64 << (10 * power)) as f64;
    if value < 99.95 { (value * 10.0).round() / 10.0 } else { value.round() }
}

/// A size, or a dash where it is not known.
pub(super) fn size_or_dash(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), size)
}

/// Bytes a second.
pub(super) fn byte_rate(rate: Option<f64>) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    rate.map_or("-".to_owned(), |rate| size(rate.round() as u64) + "/s")
}

/// How often a second.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

/// Signs of pressure in a few words; a dot if there were none.
pub(super) fn pressure(pressure: Option<Pressure>) -> String {
    let Some(pressure) = pressure else { return "-".to_owned() };
    let swapped = pressure.swapped_in_bytes.saturating_add(pressure.swapped_out_bytes);
    let mut words = Vec::new();
    if pressure.oom_kills > 0 {
        words.push(format!("{} OOM", pressure.oom_kills));
    }
    if swapped > 0 {
        words.push(format!("{} swap", size(swapped)));
    }
    if pressure.major_faults > 0 {
        words.push(format!("{} faults", pressure.major_faults));
    }
    if words.is_empty() { "·".to_owned() } else { words.join(" ") }
}

/// Text of a daemon without what would move the cursor or color the rest of a terminal: the daemon may
/// have been taken over by its guest.
pub(super) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_a_suffix() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1K"),
            (1 << 20, "1M"),
            (512 << 20, "512M"),
            (1000 << 20, "1G"),
            (1536 << 20, "1.5G"),
            (3 << 29, "1.5G"),
            (23 << 30, "23G"),
            ((99 << 30) + (1 << 29), "99.5G"),
            (u64::MAX, "16384P"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn pressure_names_what_happened() {
        let none = Pressure::default();
        assert_eq!(pressure(Some(none)), "·");
        assert_eq!(pressure(None), "-");
        let some = Pressure { major_faults: 3, swapped_in_bytes: 1 << 20, oom_kills: 1, ..none };
        assert_eq!(pressure(Some(some)), "1 OOM 1M swap 3 faults");
    }

    #[test]
    fn text_of_a_daemon_has_no_control_characters() {
        assert_eq!(harmless("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
