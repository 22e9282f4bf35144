// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! shuttle's atomics, each use of which is counted.

use core::fmt;
use core::sync::atomic::Ordering;

use shuttle::sync::atomic as imp;

use super::cost;

macro_rules! counted {
    ($($Name:ident: $Value:ty { $($rmw:ident)* })+) => { $(
        /// An atomic whose every use is a scheduling point, and counted.
        pub struct $Name(imp::$Name);

        impl $Name {
            /// An atomic that begins as `value`.
            #[track_caller]
            pub const fn new(value: $Value) -> Self {
                Self(imp::$Name::new(value))
            }

            /// The value, of which there is no other user.
            pub fn get_mut(&mut self) -> &mut $Value {
                self.0.get_mut()
            }

            /// The value.
            pub fn into_inner(self) -> $Value {
                self.0.into_inner()
            }

            /// Reads it.
            pub fn load(&self, order: Ordering) -> $Value {
                cost::load(order);
                self.0.load(order)
            }

            /// Writes it.
            pub fn store(&self, value: $Value, order: Ordering) {
                cost::store(order);
                self.0.store(value, order);
            }

            /// Writes `new` if it is `current`.
            ///
            /// # Errors
            /// What it is instead.
            pub fn compare_exchange(
                &self,
                current: $Value,
                new: $Value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$Value, $Value> {
                cost::rmw(success);
                self.0.compare_exchange(current, new, success, failure)
            }

            /// The same, which may fail for nothing on a machine.
            ///
            /// # Errors
            /// What it is.
            pub fn compare_exchange_weak(
                &self,
                current: $Value,
                new: $Value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$Value, $Value> {
                self.compare_exchange(current, new, success, failure)
            }

            /// Changes it to what `next` says, in several steps: a load, and a compare-and-exchange
            /// until one succeeds.
            ///
            /// # Errors
            /// What it is, if `next` says nothing.
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut next: impl FnMut($Value) -> Option<$Value>,
            ) -> Result<$Value, $Value> {
                let mut seen = self.load(fetch);
                while let Some(new) = next(seen) {
                    match self.compare_exchange_weak(seen, new, set, fetch) {
                        Ok(was) => return Ok(was),
                        Err(is) => seen = is,
                    }
                }
                Err(seen)
            }

            $(
                /// Changes it in one step; returns what it was.
                pub fn $rmw(&self, value: $Value, order: Ordering) -> $Value {
                    cost::rmw(order);
                    self.0.$rmw(value, order)
                }
            )*
        }

        impl Default for $Name {
            fn default() -> Self {
                Self::new(<$Value>::default())
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+ };
}

counted! {
    AtomicBool: bool { swap fetch_and fetch_or fetch_xor }
    AtomicU8: u8 { swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min }
    AtomicU32: u32 { swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min }
    AtomicU64: u64 { swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min }
    AtomicUsize: usize { swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max fetch_min }
}

/// A fence. It is no scheduling point: under shuttle every access is sequentially consistent.
pub fn fence(order: Ordering) {
    cost::fence(order);
    imp::fence(order);
}
