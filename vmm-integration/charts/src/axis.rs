// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Axes and the labels of their ticks.

/// Distance, as a share of the axis, at which two labels do not touch.
const APART: f64 = 0.17;

/// An axis, linear or by powers of ten.
pub(crate) struct Axis {
    min: f64,
    max: f64,
    log: bool,
    pub(crate) ticks: Vec<f64>,
}

impl Axis {
    pub(crate) fn new(
        values: impl Iterator<Item = f64> + Clone,
        from_zero: bool,
        may_be_log: bool,
    ) -> Self {
        let min = values.clone().fold(f64::INFINITY, f64::min);
        let max = values.fold(f64::NEG_INFINITY, f64::max);
        if !(min.is_finite() && max.is_finite()) {
            return Self { min: 0.0, max: 1.0, log: false, ticks: vec![0.0, 1.0] };
        }
        if may_be_log && min > 0.0 && max / min > 50.0 {
            let (low, high) = (min.log10().floor(), max.log10().ceil());
            let mut ticks = Vec::new();
            let step = ((high - low) / 5.0).ceil().max(1.0);
            let mut power = low;
            while power <= high {
                ticks.push(10_f64.powf(power));
                power += step;
            }
            return Self { min: 10_f64.powf(low), max: 10_f64.powf(high), log: true, ticks };
        }
        let min = if from_zero { min.min(0.0) } else { min };
        let span = if max > min { max - min } else { max.abs().max(1.0) };
        let rough = span / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough);
        let step = step.unwrap_or(power * 10.0);
        let start = (min / step).floor() * step;
        let mut ticks = vec![start];
        while let Some(&last) = ticks.last()
            && last < min + span
            && ticks.len() < 10
        {
            ticks.push(last + step);
        }
        let end = ticks.last().copied().unwrap_or(min + span);
        Self { min: start, max: end, log: false, ticks }
    }

    /// An axis by powers with a tick at each measured value, unless there are too many values or
    /// they do not grow by powers.
    pub(crate) fn of_points(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut ticks: Vec<f64> = values.collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let (min, max) = (*ticks.first()?, *ticks.last()?);
        let powers = min > 0.0 && max.is_finite() && max / min > 50.0;
        (powers && ticks.len() <= 12).then_some(Self { min, max, log: true, ticks })
    }

    /// The ticks that have room for a label: the last one, and each that is far enough from the
    /// next.
    pub(crate) fn labelled(&self) -> Vec<f64> {
        let mut labelled: Vec<f64> = Vec::new();
        for &tick in self.ticks.iter().rev() {
            if labelled.last().is_none_or(|next| self.at(*next) - self.at(tick) >= APART) {
                labelled.push(tick);
            }
        }
        labelled
    }

    /// The place of a value, from 0 to 1.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let (min, max) = (of(self.min), of(self.max));
        ((of(value) - min) / (max - min)).clamp(0.0, 1.0)
    }
}

/// A number with as many digits as are significant to a reader.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// The label of a tick.
pub fn label(value: f64) -> String {
    let short = |value: f64| {
        let text = number(value);
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    for (limit, unit) in [(1e9, "G"), (1e6, "M"), (1e4, "k")] {
        if value.abs() >= limit {
            let scale = if unit == "k" { 1e3 } else { limit };
            return format!("{}{unit}", short(value / scale));
        }
    }
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.0e}") } else { short(value) }
}

/// The label of a tick on an axis of sizes in GiB.
pub(crate) fn size_label(gib: f64) -> String {
    if gib >= 1024.0 && gib % 1024.0 == 0.0 {
        format!("{} TiB", number(gib / 1024.0))
    } else {
        format!("{} GiB", number(gib))
    }
}

/// Round numbers from `start` to `end`.
pub fn round_ticks(start: f64, end: f64) -> Vec<f64> {
    let ticks = Axis::new([start, end].into_iter(), false, false).ticks;
    ticks.into_iter().filter(|tick| (start..=end).contains(tick)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_holds_its_values_with_few_ticks() {
        for values in [vec![0.0], vec![3.0, 3.0], vec![0.0, 7.3], vec![1.0, 1e6], vec![-2.0, 5.0]] {
            let axis = Axis::new(values.iter().copied(), true, true);
            assert!((2..=11).contains(&axis.ticks.len()), "{values:?}: {:?}", axis.ticks);
            for &value in &values {
                assert!(axis.min <= value && value <= axis.max, "{values:?}");
                assert!((0.0..=1.0).contains(&axis.at(value)));
            }
        }
        assert!(Axis::new([1.0, 1e6].into_iter(), true, true).log);
        assert!(!Axis::new([0.0, 1e6].into_iter(), true, true).log);
        assert!(!Axis::new([1.0, 1e6].into_iter(), true, false).log, "over time");
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.5, "0.5"), (1500.0, "1500"), (20000.0, "20k"), (4e6, "4M"), (1e9, "1G")]
        {
            assert_eq!(label(value), text);
        }
    }

    #[test]
    fn numbers_have_their_significant_digits() {
        for (value, text) in
            [(0.0, "0"), (12345.6, "12346"), (3.0, "3"), (2.345, "2.35"), (0.01234, "0.0123")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn labels_of_sizes_do_not_touch() {
        for (gib, text) in
            [(1.0, "1 GiB"), (256.0, "256 GiB"), (16384.0, "16 TiB"), (0.5, "0.5000 GiB")]
        {
            assert_eq!(size_label(gib), text);
        }
        let sizes = [1.0, 16.0, 256.0, 1024.0, 16384.0];
        let axis = Axis::of_points(sizes.into_iter().chain(sizes)).unwrap();
        assert_eq!(axis.ticks, sizes);
        assert_eq!(axis.labelled(), [16384.0, 1024.0, 16.0, 1.0], "256 is too close to 1024");
        assert!(Axis::of_points([1.0, 2.0].into_iter()).is_none());
        assert!(Axis::of_points([0.0, 1e6].into_iter()).is_none());
    }
}
