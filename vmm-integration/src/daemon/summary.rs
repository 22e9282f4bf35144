// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon says that it did for one frontend.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// What the daemon's line about the end of a session begins with.
pub(super) const PREFIX: &str = "] session: ";

/// The daemon's counters of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Descriptor chains of the reporting queue.
    pub chains: u64,
    /// Ranges that they reported.
    pub ranges: u64,
    /// Bytes in those ranges.
    pub bytes_reported: u64,
    /// Bytes discarded.
    pub bytes_discarded: u64,
    /// Discarding system calls.
    pub discard_calls: u64,
    /// Bytes skipped, by the reason's name.
    pub skipped_bytes: BTreeMap<String, u64>,
}

impl Summary {
    /// The last session in a log of the daemon; none if no session has ended.
    ///
    /// # Errors
    /// If the line is not of the form that the daemon writes.
    pub fn last_in(log: &str) -> Option<Result<Self>> {
        let line = log.lines().rev().find_map(|line| line.split_once(PREFIX))?.1;
        Some(Self::parse(line).with_context(|| format!("in the daemon's summary {line:?}")))
    }

    fn parse(line: &str) -> Result<Self> {
        let fields: BTreeMap<&str, &str> =
            line.split_whitespace().filter_map(|field| field.split_once('=')).collect();
        let number = |name: &str| -> Result<u64> {
            let value = fields.get(name).with_context(|| format!("{name} is missing"))?;
            value.parse().with_context(|| format!("{name} is {value:?}, not a number"))
        };
        let mut skipped_bytes = BTreeMap::new();
        for (name, value) in &fields {
            if let Some(reason) = name.strip_prefix("skipped_") {
                let (_, bytes) =
                    value.split_once('/').with_context(|| format!("{name} is {value:?}"))?;
                skipped_bytes.insert(reason.to_owned(), bytes.parse()?);
            }
        }
        Ok(Self {
            chains: number("chains")?,
            ranges: number("ranges")?,
            bytes_reported: number("bytes_reported")?,
            bytes_discarded: number("bytes_discarded")?,
            discard_calls: number("discard_calls")?,
            skipped_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_session_counts() {
        let log = "[x INFO y] session: chains=1 ranges=2 bytes_reported=3 bytes_discarded=4 \
                   discard_calls=5 other_chains=0\nlistening\n\
                   [x INFO y] session: chains=6 ranges=7 bytes_reported=8 bytes_discarded=9 \
                   discard_calls=10 other_chains=0 skipped_wraps=1/11\n";
        let summary = Summary::last_in(log).unwrap().unwrap();
        assert_eq!(summary.chains, 6);
        assert_eq!(summary.discard_calls, 10);
        assert_eq!(summary.skipped_bytes["wraps"], 11);
        assert!(Summary::last_in("listening").is_none());
        assert!(Summary::last_in("] session: chains=x").unwrap().is_err());
    }
}
