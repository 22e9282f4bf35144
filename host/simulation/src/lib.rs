// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hosts of many guests in virtual time: what a policy saves, and what it costs.
//!
//! Every decision is made by `balloon-policy`, as on a real host, and every target goes through the
//! daemon's own state machine (`vhost_device_balloon::SimulatedDevice`): leases, the reserve, the
//! configuration space. Simulated are the guests' memory, their programs, and time.
//!
//! | file | contents |
//! |---|---|
//! | [`trace`] | what programs want: days, jobs, bursts, a leak |
//! | [`guest`] | a guest, made of counters or of the model of Linux's page allocator |
//! | [`faults`] | guests that are silent or lie, daemons and policies that die |
//! | [`host`] | one host, tick by tick |
//! | [`fleet`] | many hosts, side by side with hosts without a policy |
//! | [`report`] | tables and JSON |

pub mod faults;
pub mod fleet;
pub mod guest;
pub mod host;
pub mod report;
pub mod trace;
