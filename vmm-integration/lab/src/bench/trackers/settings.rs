// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The parameters of `trackers`.

use guest_driver::reporting::{Holding, TrackerKind};

use crate::parameters::parameters;
use crate::parameters::takes::{Bytes, Real, Several, Whole};

/// A way to free and allocate memory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub(in crate::bench) enum Load {
    /// Any block, evenly in time.
    Uniform,
    /// Mostly blocks of a small part of memory.
    Local,
    /// Many blocks at once.
    Bursty,
    /// Uniform, from rare to frequent frees.
    Sweep,
    /// Uniform, by real threads in real time.
    Threads,
}

impl Load {
    fn all() -> Vec<Self> {
        vec![Self::Uniform, Self::Local, Self::Bursty, Self::Sweep, Self::Threads]
    }
}

parameters! {
    /// The parameters.
    pub(in crate::bench) struct Settings {
        tracker: Vec<TrackerKind>, Several::any(), TrackerKind::ALL.to_vec(), TrackerKind::ALL.to_vec(),
            "trackers to compare";
        holding: Vec<Holding>, Several::any(), Holding::ALL.to_vec(), Holding::ALL.to_vec(),
            "how the guest holds reported pages: it isolates their pageblocks, or pulls them off the \
             free lists";
        churn: Vec<Load>, Several::any(), Load::all(), Load::all(),
            "how frees are distributed; sweep is uniform churn from rare to frequent, threads uses real \
             threads in real time";
        memory: u64, Bytes(1 << 28, 1 << 38), 4 << 30, 32 << 30, "memory of the guest";
        used: u64, Whole(5, 90), 50, 50, "percentage of memory that the programs hold";
        order: u8, Whole(0, 10), 9, 9, "order of the programs' blocks";
        rate: u64, Bytes(1 << 12, 1 << 36), 256 << 20, 1 << 30,
            "memory that uniform and local churn free, and allocate again, in a second";
        swing: usize, Whole(0, 50), 20, 20,
            "percentage by which memory in use rises and falls over 20 s of uniform and local churn; with \
             0 nearly all freed memory is allocated again at once, last in, first out";
        seconds: f64, Real(1.0, 36000.0), 60.0, 600.0, "virtual seconds";
        delay: f64, Real(0.001, 600.0), 2.0, 2.0, "seconds from a free to the pass that it requests";
        batch: usize, Whole(1, 32), 32, 32, "granules in a report";
        round_trip: u64, Whole(0, 10_000_000), 50, 50,
            "microseconds of a report there and back, without the host's discard";
        host: f64, Real(0.001, 10000.0), 5.3, 5.3,
            "GiB that the host discards in a second (5.3 was measured for 4 KiB pages)";
        thread_seconds: f64, Real(0.02, 600.0), 0.2, 3.0, "seconds of each measurement with threads";
    }
}
