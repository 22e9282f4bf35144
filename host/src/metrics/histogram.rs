// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the samples of a histogram are whole.

use super::sample::Sample;

/// The samples of one histogram, in the order in which a daemon writes them: sum, count, and the
/// buckets by their bounds, the last without one. Those of several follow one another.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    labels: Vec<(String, String)>,
    sum: bool,
    count: Option<f64>,
    /// Bound and count of the last bucket.
    bucket: Option<(f64, f64)>,
    broken: bool,
}

impl Histogram {
    /// Takes the next sample, which has one of the suffixes of a histogram and a value of 0 or more.
    pub(super) fn take(&mut self, suffix: &str, sample: &Sample<'_>) {
        let labels = sample.labels.iter().filter(|(name, _)| *name != "le");
        let labels: Vec<_> =
            labels.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        if suffix == "_sum" {
            let broken = self.broken || (self.sum && !self.is_whole());
            *self = Self { labels: labels.clone(), broken, ..Self::default() };
        }
        let Ok(value) = sample.value.parse::<f64>() else { return self.broken = true };
        let le = sample.label("le").map(|le| le.parse().unwrap_or(f64::NAN));
        let fits = labels == self.labels
            && match (suffix, le) {
                ("_sum", None) => !std::mem::replace(&mut self.sum, true),
                ("_count", None) => self.sum && self.count.replace(value).is_none(),
                ("_bucket", Some(bound)) => {
                    let before = self.bucket.replace((bound, value));
                    self.count.is_some()
                        && !bound.is_nan()
                        && before.is_none_or(|(less, fewer)| less < bound && fewer <= value)
                }
                _ => false,
            };
        self.broken |= !fits;
    }

    /// Whether nothing is missing and nothing contradicts itself.
    pub(super) fn is_whole(&self) -> bool {
        let all = self.bucket.filter(|(bound, _)| *bound == f64::INFINITY).map(|(_, all)| all);
        !self.broken && all.is_some() && all == self.count
    }
}
