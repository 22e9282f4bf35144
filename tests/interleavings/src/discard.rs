// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of the daemon's room `discard`.

#![expect(dead_code, reason = "the daemon uses the rest")]

#[path = "../../../src/discard/inhibit.rs"]
pub(crate) mod inhibit;
#[path = "../../../src/discard/pins.rs"]
mod pins;
#[path = "../../../src/discard/ranges.rs"]
pub(crate) mod ranges;
#[path = "../../../src/discard/writers_first.rs"]
pub(crate) mod writers_first;
