// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operator's rules, from TOML.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use vhost_device_balloon::operator;

/// The rules of a host. Each has a default, so that an empty file is a policy.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// What holds for the host.
    pub host: HostRules,
    /// What holds for each guest.
    pub guest: GuestRules,
    /// What holds for a guest of this name instead.
    pub guests: BTreeMap<String, GuestRules>,
}

/// What holds for a host.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct HostRules {
    /// Bytes that stay available on the host: below it is taken from guests. By default a sixteenth of
    /// its memory, and at least 512 MiB.
    #[serde(deserialize_with = "size")]
    pub reserve: Option<u64>,
    /// Bytes beyond the reserve in which nothing moves. By default as much as the reserve.
    #[serde(deserialize_with = "size")]
    pub band: Option<u64>,
    /// Time between two steps while the policy has something to do.
    #[serde(deserialize_with = "time")]
    pub period: Duration,
    /// Decide, show, and send nothing.
    pub dry_run: bool,
}

impl Default for HostRules {
    fn default() -> Self {
        Self { reserve: None, band: None, period: Duration::from_secs(10), dry_run: false }
    }
}

/// What holds for a guest; `None` is the rule for all guests, and for these the default.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct GuestRules {
    /// Bytes that the guest keeps, whatever it uses. By default nothing but the floor that it earns.
    #[serde(deserialize_with = "size")]
    pub min: Option<u64>,
    /// Bytes that the guest gets at most, unless it uses more. By default all of its memory.
    #[serde(deserialize_with = "size")]
    pub max: Option<u64>,
    /// Bytes beyond what it uses that stay available to it. By default the reserve of a target: an
    /// eighth of its memory and at least 256 MiB, or half of a guest with less than 512 MiB.
    #[serde(deserialize_with = "size")]
    pub reserve: Option<u64>,
    /// Its weight: with twice the shares of another guest it loses half as much of what it can
    /// spare. From 1 to 10,000, by default 100.
    pub shares: Option<u32>,
    /// The largest part of its memory that a step takes, in percent from 1 to 100, by default 6.
    pub step_percent: Option<u32>,
    /// Whether the policy sets its target at all, by default yes.
    pub managed: Option<bool>,
    /// Whether it does so only if the guest's driver deflates before the OOM killer runs, by default yes.
    pub needs_deflate_on_oom: Option<bool>,
}

/// What is wrong with rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// No TOML, or not of this form.
    #[error("the rules cannot be read: {0}")]
    Form(#[from] toml::de::Error),
    /// A value that no guest or host can have.
    #[error("{name} must be {expected}, got {value}")]
    Range {
        /// Where it is.
        name: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        value: String,
    },
}

/// The shortest and the longest period.
const PERIODS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3600)];

impl Rules {
    /// Reads rules.
    ///
    /// ```
    /// use balloon_policy::Rules;
    ///
    /// let rules = Rules::from_toml(
    ///     r#"
    ///     [host]
    ///     reserve = "4G"
    ///     period = "5s"
    ///     [guest]
    ///     min = "512M"
    ///     [guests.database]
    ///     shares = 400
    ///     "#,
    /// )
    /// .unwrap();
    /// let database = rules.of("database");
    /// assert_eq!((database.shares, database.min), (400, 512 << 20));
    /// ```
    ///
    /// # Errors
    /// [`RulesError`], with the place in the text.
    pub fn from_toml(text: &str) -> Result<Self, RulesError> {
        let rules: Self = toml::from_str(text)?;
        let period = rules.host.period;
        if period < PERIODS[0] || period > PERIODS[1] {
            return Err(RulesError::Range {
                name: "host.period".to_owned(),
                expected: "from 1s to 1h",
                value: humantime::format_duration(period).to_string(),
            });
        }
        rules.guest.check("guest")?;
        for (name, guest) in &rules.guests {
            guest.check(&format!("guests.{name}"))?;
            let (min, max) = (guest.min.or(rules.guest.min), guest.max.or(rules.guest.max));
            GuestRules { min, max, ..*guest }.check(&format!("guests.{name}"))?;
        }
        Ok(rules)
    }

    /// What holds for the guest of this name.
    pub fn of(&self, name: &str) -> Held {
        let own = self.guests.get(name).copied().unwrap_or_default();
        let all = self.guest;
        Held {
            min: own.min.or(all.min).unwrap_or(0),
            max: own.max.or(all.max).unwrap_or(u64::MAX),
            reserve: own.reserve.or(all.reserve),
            shares: own.shares.or(all.shares).unwrap_or(100),
            step_percent: own.step_percent.or(all.step_percent).unwrap_or(6),
            managed: own.managed.or(all.managed).unwrap_or(true),
            needs_deflate_on_oom: (own.needs_deflate_on_oom.or(all.needs_deflate_on_oom))
                .unwrap_or(true),
        }
    }
}

/// The rules of one guest, with the defaults in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// See [`GuestRules::min`].
    pub min: u64,
    /// See [`GuestRules::max`].
    pub max: u64,
    reserve: Option<u64>,
    /// See [`GuestRules::shares`].
    pub shares: u32,
    /// See [`GuestRules::step_percent`].
    pub step_percent: u32,
    /// See [`GuestRules::managed`].
    pub managed: bool,
    /// See [`GuestRules::needs_deflate_on_oom`].
    pub needs_deflate_on_oom: bool,
}

impl Held {
    /// Bytes beyond what it uses that stay available to a guest with that memory.
    pub fn reserve(&self, memory_bytes: u64) -> u64 {
        self.reserve.unwrap_or_else(|| operator::reserve_bytes(memory_bytes))
    }
}

impl HostRules {
    /// The marks of a host with that memory.
    pub fn marks(&self, total_bytes: u64) -> Marks {
        let reserve = self.reserve.unwrap_or((total_bytes / 16).max(512 << 20));
        let band = self.band.unwrap_or(reserve);
        Marks { low: reserve, high: reserve.saturating_add(band) }
    }
}

/// Available bytes of a host between which nothing moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Below it is taken.
    pub low: u64,
    /// Above it is given back.
    pub high: u64,
}

impl Marks {
    /// What is aimed at when something is taken.
    pub fn aim(&self) -> u64 {
        self.low + (self.high - self.low) / 4
    }
}

impl GuestRules {
    fn check(&self, place: &str) -> Result<(), RulesError> {
        let range = |name: &str, expected, value: String| {
            Err(RulesError::Range { name: format!("{place}.{name}"), expected, value })
        };
        match *self {
            Self { shares: Some(shares), .. } if !(1..=10_000).contains(&shares) => {
                range("shares", "from 1 to 10000", shares.to_string())
            }
            Self { step_percent: Some(part), .. } if !(1..=100).contains(&part) => {
                range("step_percent", "from 1 to 100", part.to_string())
            }
            Self { min: Some(min), max: Some(max), .. } if min > max => {
                range("min", "at most max", format!("{min}, max is {max}"))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes as a number, or as text such as `512M`.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(from)
        .map_err(|_| de::Error::custom("expected bytes, or text such as \"512M\""))?
    {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => operator::parse_size(&text).map(Some).map_err(de::Error::custom),
    }
}

/// Time as text such as `10s`.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|_| de::Error::custom(format!("expected a time such as \"10s\", got {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_own_before_all_before_default() {
        let text = "[guest]\nmin = '1G'\nshares = 50\n[guests.a]\nmin = 7\nmanaged = false";
        let rules = Rules::from_toml(text).unwrap();
        let (a, b) = (rules.of("a"), rules.of("b"));
        assert_eq!((a.min, a.shares, a.managed), (7, 50, false));
        assert_eq!((b.min, b.max, b.step_percent, b.managed), (1 << 30, u64::MAX, 6, true));
        assert_eq!(b.reserve(8 << 30), 1 << 30);
        assert_eq!(Rules::from_toml("").unwrap(), Rules::default());
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for (text, said) in [
            ("[host]\nreserve = '4GB'", "expected bytes such as"),
            ("[host]\nperiod = '0s'", "host.period must be from 1s to 1h, got 0s"),
            ("[host]\nperiod = 'soon'", "expected a time such as \"10s\""),
            ("[host]\nreserv = 1", "unknown field `reserv`"),
            ("[guest]\nshares = 0", "guest.shares must be from 1 to 10000, got 0"),
            ("[guest]\nmin = -1", "expected bytes, or text such as"),
            ("[guests.db]\nstep_percent = 101", "guests.db.step_percent"),
            ("[guest]\nmax = '1G'\n[guests.db]\nmin = '2G'", "guests.db.min must be at most max"),
            ("hello", "the rules cannot be read"),
        ] {
            let error = Rules::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
