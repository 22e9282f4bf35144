// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fuzz targets over what is private to this room.

mod accepting;
mod probe;
pub(crate) mod relay;
pub(crate) mod shapes;

pub(crate) use probe::Probe;
