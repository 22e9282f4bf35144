// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! hostd as a process, with real daemons, and with some that are none.

mod guest;
mod host;
mod linux;
mod metrics;
mod overcommit;
mod process;
mod steering;
mod unit;
