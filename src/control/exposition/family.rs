// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One metric: its name, what it says, and where its samples come from.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry;

use super::picture::Picture;
use crate::control::counters::HistogramView;

/// What a metric is in; its name ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    None,
    Bytes,
    Seconds,
}

/// A value, without the loss of the other's type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Whole(u64),
    Fraction(f64),
}

/// The samples of a metric, without those that would say nothing.
#[derive(Debug)]
pub(super) enum Samples<'a> {
    /// One, or none if it is unknown.
    One(Option<Number>),
    /// One for each value of its label.
    By(Vec<(&'a str, u64)>),
    /// How often something took how long.
    Histogram(&'a HistogramView),
}

impl Samples<'_> {
    /// One that is known.
    pub(super) fn whole(value: impl Into<Option<u64>>) -> Self {
        Self::One(value.into().map(Number::Whole))
    }

    /// One that is known.
    pub(super) fn fraction(value: Option<f64>) -> Self {
        Self::One(value.map(Number::Fraction))
    }

    /// One that says nothing while it is 0.
    pub(super) fn unless_zero(value: u64) -> Self {
        Self::whole(Some(value).filter(|value| *value > 0))
    }
}

/// Where samples come from.
#[derive(Clone, Copy)]
enum Source {
    Daemon(fn(&Picture) -> Samples<'_>),
    /// The statistic of the guest with the metric's name.
    Guest,
}

/// The bounds of the buckets, in seconds. There are more in JSON; each is a series for each VM.
const BOUNDS: [f64; 8] = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, f64::INFINITY];

const GUEST: &str = "balloon_guest_";

/// A metric.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// Without the unit and `_total`.
    name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    unit: Unit,
    /// What it says, in a line.
    pub help: &'static str,
    /// The name of its label, if it has one.
    pub label: Option<&'static str>,
    /// The path and the field of the same value in JSON, if there is one.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes docs/user/metrics.md from it"))]
    pub json: Option<(&'static str, &'static str)>,
    /// What it means that there is no sample.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test makes docs/user/metrics.md from it"))]
    pub absent: &'static str,
    source: Source,
}

impl Family {
    /// A metric of the daemon that always has a sample, unless [`Family::absent`] says otherwise.
    pub(super) const fn new(
        name: &'static str,
        kind: MetricType,
        help: &'static str,
        samples: fn(&Picture) -> Samples<'_>,
    ) -> Self {
        let source = Source::Daemon(samples);
        Self { name, kind, unit: Unit::None, help, label: None, json: None, absent: "", source }
    }

    /// A statistic of the guest.
    pub(super) const fn of_guest(name: &'static str, kind: MetricType, help: &'static str) -> Self {
        Self {
            name,
            kind,
            unit: Unit::None,
            help,
            label: None,
            json: None,
            absent: "the guest has not sent it",
            source: Source::Guest,
        }
    }

    pub(super) const fn in_unit(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    pub(super) const fn by(self, label: &'static str) -> Self {
        Self { label: Some(label), ..self }
    }

    pub(super) const fn json(self, path: &'static str, field: &'static str) -> Self {
        Self { json: Some((path, field)), ..self }
    }

    pub(super) const fn absent(self, means: &'static str) -> Self {
        Self { absent: means, ..self }
    }

    /// The name without `_total`.
    fn stem(&self) -> String {
        match self.unit {
            Unit::None => self.name.to_owned(),
            Unit::Bytes => format!("{}_bytes", self.name),
            Unit::Seconds => format!("{}_seconds", self.name),
        }
    }

    /// The field in JSON of a statistic of the guest.
    pub(super) fn field(&self) -> String {
        self.stem().trim_start_matches(GUEST).to_owned()
    }

    fn samples<'a>(&self, picture: &'a Picture) -> Samples<'a> {
        match self.source {
            Source::Daemon(samples) => samples(picture),
            Source::Guest => {
                let sample = picture.statistics.sample.as_ref();
                let value = sample.and_then(|sample| *sample.values.get(&self.field())?);
                Samples::whole(value)
            }
        }
    }

    /// Writes the metric, if it has samples.
    pub(super) fn encode(
        &self,
        picture: &Picture,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let samples = self.samples(picture);
        let is_empty = match &samples {
            Samples::One(value) => value.is_none(),
            Samples::By(values) => values.is_empty(),
            Samples::Histogram(view) => view.count == 0,
        };
        if is_empty {
            return Ok(());
        }
        let unit = match self.unit {
            Unit::None => None,
            Unit::Bytes => Some(registry::Unit::Bytes),
            Unit::Seconds => Some(registry::Unit::Seconds),
        };
        let mut metric =
            encoder.encode_descriptor(self.name, self.help, unit.as_ref(), self.kind)?;
        match samples {
            Samples::One(value) => {
                value.map_or(Ok(()), |value| number(&mut metric, self.kind, value))
            }
            Samples::By(values) => values.into_iter().try_for_each(|(value, count)| {
                let labels = [(self.label.unwrap_or_default(), value)];
                number(&mut metric.encode_family(&labels)?, self.kind, Number::Whole(count))
            }),
            Samples::Histogram(view) => {
                metric.encode_histogram::<NoLabelSet>(view.sum, view.count, &coarse(view), None)
            }
        }
    }
}

fn number(metric: &mut MetricEncoder<'_>, kind: MetricType, value: Number) -> fmt::Result {
    match (kind, value) {
        (MetricType::Counter, Number::Whole(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (MetricType::Counter, Number::Fraction(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (_, Number::Whole(value)) => metric.encode_gauge(&value),
        (_, Number::Fraction(value)) => metric.encode_gauge(&value),
    }
}

/// How often it took at most each of the bounds and longer than the bound before; the encoder sums up.
fn coarse(view: &HistogramView) -> [(f64, u64); BOUNDS.len()] {
    let mut buckets = BOUNDS.map(|bound| (bound, 0));
    for bucket in &view.buckets {
        let le = bucket.le.unwrap_or(f64::INFINITY);
        let place = BOUNDS.partition_point(|bound| *bound < le).min(BOUNDS.len() - 1);
        buckets[place].1 += bucket.count;
    }
    buckets
}

#[cfg(test)]
impl Family {
    /// The name as a scraper sees it.
    pub(super) fn full_name(&self) -> String {
        let suffix = if matches!(self.kind, MetricType::Counter) { "_total" } else { "" };
        self.stem() + suffix
    }

    /// Where the same value is in JSON.
    pub(super) fn place(&self) -> Option<(&'static str, String)> {
        match self.source {
            Source::Guest => Some(("/v1/statistics", format!("sample.values.{}", self.field()))),
            Source::Daemon(_) => self.json.map(|(path, field)| (path, field.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::counters::BucketView;

    #[test]
    fn coarse_buckets_hold_every_fine_one() {
        let bucket = |le: Option<f64>, count| BucketView { le, count };
        let buckets = vec![
            bucket(Some(1e-6), 1),
            bucket(Some(1e-5), 2),
            bucket(Some(2e-5), 4),
            bucket(Some(10.0), 8),
            bucket(None, 16),
        ];
        let counts =
            coarse(&HistogramView { count: 31, sum: 0.0, buckets }).map(|(_, count)| count);
        assert_eq!(counts, [3, 4, 0, 0, 0, 0, 8, 16]);
    }
}
