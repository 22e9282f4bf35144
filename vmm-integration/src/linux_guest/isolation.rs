// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The module that reports by isolation, as the host drives it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::AgentClient;
use super::modules::ISOLATION_REPORTING;

const PARAMETERS: &str = "/sys/module/isolation_reporting/parameters";
const FIGURES: &str = "/sys/kernel/debug/isolation_reporting";

/// Loads it; `params` as for modprobe, such as `hold=pull tracker=section-bit`.
///
/// # Errors
/// When the guest has no such module ([`GuestConfig::own_modules`]), or the module refuses its
/// kernel; then with what the kernel's log says.
///
/// [`GuestConfig::own_modules`]: crate::vmm::qemu::GuestConfig::own_modules
pub fn load(agent: &AgentClient, params: &str) -> Result<()> {
    agent.load_module(ISOLATION_REPORTING, params)
}

/// Unloads it, so that mainline reports again.
///
/// # Errors
/// When it is not loaded.
pub fn unload(agent: &AgentClient) -> Result<()> {
    agent.unload_module(ISOLATION_REPORTING)
}

/// Sets a switch, which counts from the next pass.
///
/// # Errors
/// When the module does not know the switch or the position.
pub fn set(agent: &AgentClient, switch: &str, position: &str) -> Result<()> {
    agent.write_file(&format!("{PARAMETERS}/{switch}"), position)
}

/// What a kind of step took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How many.
    pub count: u64,
    /// All together, ns.
    pub total_ns: u64,
    /// The longest, ns.
    pub most_ns: u64,
    /// How many took at least `1 << power` ns, and less than twice that, by power.
    pub by_power: BTreeMap<u32, u64>,
}

impl Cost {
    /// The mean in ns; none without a step.
    #[allow(clippy::cast_precision_loss)] // a figure for people
    pub fn mean_ns(&self) -> Option<f64> {
        (self.count > 0).then(|| self.total_ns as f64 / self.count as f64)
    }

    /// A bound in ns that `hundredths` of a hundred steps stay below, to the power of two.
    pub fn below_ns(&self, hundredths: u64) -> Option<u64> {
        let mut left = (self.count * hundredths).div_ceil(100);
        self.by_power.iter().find_map(|(power, count)| {
            left = left.saturating_sub(*count);
            (left == 0).then(|| 1 << (power + 1))
        })
    }
}

/// The module's figures since it was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    counts: BTreeMap<String, u64>,
    costs: BTreeMap<String, Cost>,
}

impl Statistics {
    /// Reads them.
    ///
    /// # Errors
    /// When the module is not loaded.
    pub fn read(agent: &AgentClient) -> Result<Self> {
        let text = agent.read_file(&format!("{FIGURES}/statistics"))?;
        Self::parse(&text).context("the module's statistics have an unexpected form")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut statistics = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [name, count] => {
                    statistics.counts.insert(name.to_owned(), count.parse().ok()?);
                }
                [name, "count", count, "total-ns", total, "most-ns", most, ..] => {
                    let powers = words[7..].iter().map(|word| {
                        let (power, count) = word.split_once(':')?;
                        Some((power.parse().ok()?, count.parse().ok()?))
                    });
                    let cost = Cost {
                        count: count.parse().ok()?,
                        total_ns: total.parse().ok()?,
                        most_ns: most.parse().ok()?,
                        by_power: powers.collect::<Option<_>>()?,
                    };
                    statistics.costs.insert(name.to_owned(), cost);
                }
                _ => return None,
            }
        }
        Some(statistics)
    }

    /// A count, such as `passes`, `busy`, `lost`, `chains` or `pages`.
    ///
    /// # Panics
    /// When the module has no such count.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or_else(|| panic!("no count named {name}"))
    }

    /// What a kind of step took: `start`, `test`, `undo`, `pull`, `put-back`, `report`, `held`, `pass`.
    ///
    /// # Panics
    /// When the module has no such step.
    pub fn cost(&self, name: &str) -> &Cost {
        self.costs.get(name).unwrap_or_else(|| panic!("no step named {name}"))
    }
}

/// The sections of the blocks that are held at this moment, in the order of the report.
///
/// # Errors
/// When the module is not loaded.
pub fn held_sections(agent: &AgentClient) -> Result<Vec<u32>> {
    let text = agent.read_file(&format!("{FIGURES}/held"))?;
    text.lines()
        .map(|line| {
            let section = line.split_whitespace().nth(2);
            section.and_then(|section| section.parse().ok()).context("a held block has no section")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read() {
        let text = "passes 3\nstart count 4 total-ns 100 most-ns 40 3:1 5:3\ntest count 0 total-ns 0 most-ns 0\n";
        let statistics = Statistics::parse(text).unwrap();
        assert_eq!(statistics.count("passes"), 3);
        let start = statistics.cost("start");
        assert_eq!(start.mean_ns(), Some(25.0));
        assert_eq!((start.below_ns(25), start.below_ns(50)), (Some(16), Some(64)));
        assert_eq!(statistics.cost("test").mean_ns(), None);
        assert_eq!(statistics.cost("test").below_ns(50), None);
        assert!(Statistics::parse("passes\n").is_none());
    }
}
