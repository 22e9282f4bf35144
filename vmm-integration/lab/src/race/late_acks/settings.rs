// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters.

use std::time::Duration;

use crate::parameters::parameters;
use crate::parameters::takes::{Several, Whole};

/// How late an acknowledgement comes, counted from the beginning of the operation beside it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::race) enum Late {
    /// As the operation begins.
    AtOnce,
    /// 100 ms.
    #[strum(serialize = "100-ms")]
    Ms100,
    /// 1 s.
    #[strum(serialize = "1-s")]
    Second,
    /// Not until the experiment lets go.
    Never,
}

impl Late {
    pub(super) const ALL: [Self; 4] = [Self::AtOnce, Self::Ms100, Self::Second, Self::Never];

    /// The time until the acknowledgement; `limit` for one that never comes.
    pub(super) fn time(self, limit: Duration) -> Duration {
        match self {
            Self::AtOnce => Duration::ZERO,
            Self::Ms100 => Duration::from_millis(100),
            Self::Second => Duration::from_secs(1),
            Self::Never => limit,
        }
    }
}

parameters! {
    /// The parameters.
    pub(in crate::race) struct Settings {
        late: Vec<Late>, Several::any(), Late::ALL.to_vec(), Late::ALL.to_vec(),
            "how late the acknowledgements come";
        runs: u32, Whole(1, 1000), 1, 5, "runs of each, in one guest";
        limit: u64, Whole(1000, 600_000), 5000, 20_000,
            "milliseconds after which the acknowledgement that never comes is let go";
        patience: u64, Whole(1000, 600_000), 90_000, 90_000,
            "milliseconds in which an operation must end after the acknowledgement";
    }
}
