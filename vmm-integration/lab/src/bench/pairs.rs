// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two things compared by turns in pairs: what the middle of their ratios is, and how sure that is.

use guest_driver::random::Random;

/// The least confidence of an interval, given enough pairs.
const CONFIDENCE: f64 = 0.95;

/// For each pair whether the second thing has its turn first. Whatever drifts over the time of a
/// pair, it hits both alike.
pub(super) fn orders(seed: u64, pairs: usize) -> Vec<bool> {
    let mut random = Random(seed);
    (0..pairs).map(|_| random.below(2) == 1).collect()
}

/// A median and an interval that holds the true one, whatever the values' distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// How likely an interval that is made like this holds the true median, from 0 to 1.
    pub(super) confidence: f64,
}

impl Estimate {
    /// Of values that do not depend on each other; none of no values.
    ///
    /// The interval goes from one order statistic to its mirror image: the true median lies below
    /// the lowest `k` of `n` values as often as a coin that is thrown `n` times shows heads less
    /// than `k` times.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let n = values.len();
        // The narrowest that is sure enough, or else the widest.
        let rank = (0..n.div_ceil(2)).rev().find(|&rank| confidence(n, rank) >= CONFIDENCE);
        let rank = rank.unwrap_or(0);
        Some(Self {
            median: f64::midpoint(
                values.get((n - 1) / 2).copied().unwrap_or(lowest),
                values.get(n / 2).copied().unwrap_or(highest),
            ),
            low: values.get(rank).copied().unwrap_or(lowest),
            high: values.get(n - 1 - rank).copied().unwrap_or(highest),
            confidence: confidence(n, rank),
        })
    }
}

/// How likely the median lies within what is left of `n` values when `rank` are left out at each
/// end.
#[allow(clippy::cast_precision_loss)] // few
fn confidence(n: usize, rank: usize) -> f64 {
    let (mut outside, mut ways) = (0.0, 1.0);
    for heads in 0..=rank {
        outside += ways;
        ways *= (n - heads) as f64 / (heads + 1) as f64;
    }
    let exponent = i32::try_from(n).unwrap_or(i32::MAX);
    (1.0 - 2.0 * outside * 0.5_f64.powi(exponent)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_the_narrowest_that_is_sure_enough() {
        // As in any table of the sign test.
        for (n, rank, expected) in [(6, 0, 0.96875), (9, 1, 0.9609), (17, 4, 0.9510)] {
            assert!((confidence(n, rank) - expected).abs() < 1e-4);
            let values = (0..n).map(|value| f64::from(u32::try_from(value).unwrap()));
            let estimate = Estimate::of(values).unwrap();
            let at = |rank: usize| f64::from(u32::try_from(rank).unwrap());
            assert_eq!(estimate.low, at(rank));
            assert_eq!(estimate.high, at(n - 1 - rank));
            assert!(confidence(n, rank + 1) < CONFIDENCE);
        }
    }

    #[test]
    fn few_values_say_how_little_they_are_worth() {
        assert_eq!(Estimate::of([]), None);
        let one = Estimate::of([2.0]).unwrap();
        assert_eq!((one.median, one.low, one.high, one.confidence), (2.0, 2.0, 2.0, 0.0));
        let two = Estimate::of([3.0, 1.0]).unwrap();
        assert_eq!((two.median, two.low, two.high, two.confidence), (2.0, 1.0, 3.0, 0.5));
    }

    #[test]
    fn an_outlier_does_not_move_it() {
        let values = [1.0, 0.99, 1.01, 1.0, 0.98, 1.02, 1.0, 1.0, 17.0];
        let estimate = Estimate::of(values).unwrap();
        assert_eq!((estimate.median, estimate.low, estimate.high), (1.0, 0.99, 1.02));
    }

    #[test]
    fn orders_repeat_and_both_occur() {
        let orders = orders(1, 32);
        assert_eq!(orders, super::orders(1, 32));
        assert!(orders.contains(&true) && orders.contains(&false));
    }
}
