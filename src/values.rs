// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes and intervals as operators write and read them.

use crate::device::{MAX_LEASE, MAX_STATISTICS_INTERVAL};

/// Powers of 1024 with their suffixes, the largest first.
const UNITS: [(u32, &str, &str); 4] =
    [(40, "T", "TiB"), (30, "G", "GiB"), (20, "M", "MiB"), (10, "K", "KiB")];

/// Reads a number of bytes with an optional suffix for a power of 1024: `4096`, `64K`, `512M`, `2G`,
/// `1T`, also written `64KiB` and so on.
///
/// # Errors
/// What was expected, if it is no size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let is_unit = |(_, short, long): &&(u32, &str, &str)| suffix == *short || suffix == *long;
    let shift = match suffix {
        "" => Some(0),
        "k" => Some(10),
        _ => UNITS.iter().find(is_unit).map(|(shift, ..)| *shift),
    };
    shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift)).ok_or_else(|| {
        format!("expected bytes such as 4096, 512M or 2G (K, M, G, T), got {text:?}")
    })
}

/// Writes bytes in the largest unit that leaves a digit before the point: `1.50 GiB`.
pub fn show_size(bytes: u64) -> String {
    let Some((shift, _, unit)) = UNITS.into_iter().find(|(shift, ..)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    let rest = bytes & ((1 << shift) - 1);
    // Rounded down: never more than there is.
    match (u128::from(rest) * 100) >> shift {
        0 => format!("{whole} {unit}"),
        hundredths => format!("{whole}.{hundredths:02} {unit}"),
    }
}

/// Reads the seconds between two polls of the statistics. The device checks the range.
pub(crate) fn parse_interval(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!(
            "expected whole seconds from 1 to {}, or 0 for never, got {text:?}",
            MAX_STATISTICS_INTERVAL.as_secs()
        )
    })
}

/// Reads the seconds that a target's lease lasts: `30s`, `5m`, `1h 30m`.
pub(crate) fn parse_lease(text: &str) -> Result<u32, String> {
    let length = humantime::parse_duration(text).ok();
    let length = length.filter(|length| !length.is_zero() && *length <= MAX_LEASE);
    let seconds = length.filter(|length| length.subsec_nanos() == 0).map(|length| length.as_secs());
    seconds.and_then(|seconds| u32::try_from(seconds).ok()).ok_or_else(|| {
        format!("expected whole seconds such as 30s, 5m or 1h, at most a day, got {text:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_powers_of_1024() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(64 << 10));
        assert_eq!(parse_size("64k"), Ok(64 << 10));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "M", "-1", "+1", "1.5G", "1MB", "0x10", "1 M", "16777216T", "１"] {
            assert!(parse_size(bad).unwrap_err().contains("expected"), "{bad}");
        }
    }

    #[test]
    fn leases_are_whole_seconds_up_to_a_day() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h 1s", 3601), ("24h", 86400)] {
            assert_eq!(parse_lease(text), Ok(seconds));
        }
        for bad in ["", "30", "0s", "1500ms", "86401s", "-1s", "99999999999999999999s", "2days"] {
            assert!(parse_lease(bad).unwrap_err().contains("expected whole seconds"), "{bad}");
        }
    }

    #[test]
    fn sizes_are_never_more_than_there_is() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1536 << 20, "1.50 GiB"),
            ((1 << 30) - 1, "1023.99 MiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }
}
