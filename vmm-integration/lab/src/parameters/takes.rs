// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The values that a parameter takes, and how they are read and written.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use crate::size::Size;

/// The values that a parameter takes. [`Display`] describes them.
pub trait Takes: Display {
    /// The type of a value.
    type Value: PartialEq;

    /// Reads a value; none if it is not one of these.
    fn parse(&self, text: &str) -> Option<Self::Value>;

    /// Writes a value so that [`Takes::parse`] reads it.
    fn show(&self, value: &Self::Value) -> String;
}

/// A whole number from one bound to the other.
pub struct Whole<T>(pub T, pub T);

impl<T: Display> Display for Whole<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {} to {}", self.0, self.1)
    }
}

impl<T: Display + FromStr + PartialOrd> Takes for Whole<T> {
    type Value = T;

    fn parse(&self, text: &str) -> Option<T> {
        text.parse().ok().filter(|number| (&self.0..=&self.1).contains(&number))
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A number from one bound to the other.
pub struct Real(pub f64, pub f64);

impl Display for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number from {} to {}", self.0, self.1)
    }
}

impl Takes for Real {
    type Value = f64;

    fn parse(&self, text: &str) -> Option<f64> {
        text.parse().ok().filter(|number| (self.0..=self.1).contains(number))
    }

    fn show(&self, value: &f64) -> String {
        value.to_string()
    }
}

/// A size in bytes from one bound to the other, with an optional unit: see [`Size`].
pub struct Bytes(pub u64, pub u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = [self.0, self.1].map(Size);
        write!(f, "a size from {least} to {most}, such as 512M or 4G")
    }
}

impl Takes for Bytes {
    type Value = u64;

    fn parse(&self, text: &str) -> Option<u64> {
        let Size(bytes) = text.parse().ok()?;
        (self.0..=self.1).contains(&bytes).then_some(bytes)
    }

    fn show(&self, value: &u64) -> String {
        Size(*value).to_string()
    }
}

/// One size or several as in [`Bytes`], separated by commas.
pub struct Sizes(pub u64, pub u64);

impl Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = [self.0, self.1].map(Size);
        write!(f, "sizes from {least} to {most}, such as 512M,4G")
    }
}

impl Takes for Sizes {
    type Value = Vec<u64>;

    fn parse(&self, text: &str) -> Option<Vec<u64>> {
        each_once(text, |size| Bytes(self.0, self.1).parse(size))
    }

    fn show(&self, value: &Vec<u64>) -> String {
        joined(value.iter().map(|size| Size(*size)))
    }
}

/// Powers of two as in [`Sizes`].
pub struct PowersOfTwo(pub u64, pub u64);

impl Display for PowersOfTwo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = [self.0, self.1].map(Size);
        write!(f, "powers of two from {least} to {most}, such as 512K,4M")
    }
}

impl Takes for PowersOfTwo {
    type Value = Vec<u64>;

    fn parse(&self, text: &str) -> Option<Vec<u64>> {
        let sizes = Sizes(self.0, self.1).parse(text)?;
        sizes.iter().all(|size| size.is_power_of_two()).then_some(sizes)
    }

    fn show(&self, value: &Vec<u64>) -> String {
        Sizes(self.0, self.1).show(value)
    }
}

/// One variant of an enum or several, separated by commas.
pub struct Several<T>(PhantomData<T>);

impl<T> Several<T> {
    /// Any variants.
    pub fn any() -> Self {
        Self(PhantomData)
    }
}

impl<T: strum::VariantNames> Display for Several<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one or several of {}", T::VARIANTS.join(", "))
    }
}

impl<T: strum::VariantNames + FromStr + Display + PartialEq> Takes for Several<T> {
    type Value = Vec<T>;

    fn parse(&self, text: &str) -> Option<Vec<T>> {
        each_once(text, |name| name.parse().ok())
    }

    fn show(&self, value: &Vec<T>) -> String {
        joined(value)
    }
}

/// The values between commas, without repetitions; none if one of them is not a value.
fn each_once<T: PartialEq>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    let mut once = Vec::new();
    for one in text.split(',') {
        let one = parse(one.trim())?;
        if !once.contains(&one) {
            once.push(one);
        }
    }
    Some(once)
}

fn joined(all: impl IntoIterator<Item = impl Display>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}
