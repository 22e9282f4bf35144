// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes as command lines and records write them.

use std::fmt;
use std::str::FromStr;

/// A size in bytes, written with a binary unit: `512M`, `4G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: u32| self.0 > 0 && self.0.trailing_zeros() >= shift;
        match UNITS.into_iter().find(|&(_, shift)| whole(shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let unit = text.chars().last().map(|last| last.to_ascii_uppercase());
        let unit = UNITS.into_iter().find(|&(letter, _)| Some(letter) == unit);
        let (digits, shift) = match unit {
            Some((_, shift)) => (&text[..text.len() - 1], shift),
            None => (text, 0),
        };
        let number: u64 = digits.parse().map_err(|_| ())?;
        number.checked_mul(1 << shift).map(Self).ok_or(())
    }
}
