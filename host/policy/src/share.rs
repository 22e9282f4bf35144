// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The division of what the host lacks, or can give, among guests.

/// What one guest may get of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its part, in proportion to those of the others.
    pub weight: u128,
    /// The most that it gets, in bytes.
    pub cap: u64,
}

/// Divides `amount` bytes in proportion to the weights. Who reaches its cap leaves its rest to the others.
///
/// A larger amount gives none of them less. The sum is never more than `amount`, and less by a byte
/// for each claim at most where the caps allow all of it.
pub(crate) fn divide(amount: u64, claims: &[Claim]) -> Vec<u64> {
    let mut parts = vec![0; claims.len()];
    let mut order: Vec<usize> = (0..claims.len()).filter(|at| claims[*at].weight > 0).collect();
    // Those that reach their caps first: cap / weight, compared without loss.
    order.sort_by(|a, b| {
        let (a, b) = (claims[*a], claims[*b]);
        (u128::from(a.cap) * b.weight).cmp(&(u128::from(b.cap) * a.weight))
    });
    let mut weights: u128 = order.iter().map(|at| claims[*at].weight).sum();
    let mut left = amount;
    for at in order {
        let Claim { weight, cap } = claims[at];
        let part = u128::from(left) * weight / weights;
        let part = u64::try_from(part).unwrap_or(u64::MAX).min(cap);
        parts[at] = part;
        left -= part;
        weights -= weight;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let claim =
            (0..1_u128 << 50, 0..1_u64 << 40).prop_map(|(weight, cap)| Claim { weight, cap });
        prop::collection::vec(claim, 0..12)
    }

    #[test]
    fn divide_caps_leave_their_rest_to_others() {
        let claims = [(1, 100), (1, 10), (2, 100)].map(|(weight, cap)| Claim { weight, cap });
        assert_eq!(divide(40, &claims), [10, 10, 20]);
        assert_eq!(divide(100, &claims), [30, 10, 60]);
        assert_eq!(divide(1000, &claims), [100, 10, 100]);
        assert_eq!(divide(7, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn divide_any_claims_bounded_whole_and_monotone(claims in claims(), amount in 0..1_u64 << 42) {
            let parts = divide(amount, &claims);
            let (mut sum, mut caps) = (0, 0);
            for (part, claim) in parts.iter().zip(&claims) {
                prop_assert!(*part <= claim.cap);
                sum += part;
                caps += if claim.weight > 0 { claim.cap } else { 0 };
            }
            let whole = amount.min(caps);
            prop_assert!(sum <= amount && sum + claims.len() as u64 >= whole, "{sum} of {whole}");
            for (less, more) in parts.iter().zip(divide(amount + 4096, &claims)) {
                prop_assert!(*less <= more + 1, "{less} of less, {more} of more");
            }
        }

        #[test]
        fn divide_double_weight_gets_twice(amount in 0..1_u64 << 40, weight in 1..1_u128 << 40) {
            let claims = [weight, 2 * weight].map(|weight| Claim { weight, cap: u64::MAX });
            let parts = divide(amount, &claims);
            prop_assert!(parts[1].abs_diff(2 * parts[0]) <= 2, "{parts:?}");
        }
    }
}
