// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each scheme of the OOM reaper reaps of processes that devices mirror in part, in virtual time, beside
//! the closed forms.
//!
//! ```sh
//! cargo run -q --release -p guest-driver --example reaped
//! ```

use core::time::Duration;

use guest_driver::oom_reaper::Scheme;
use guest_driver::oom_reaper::measure::Load;

const SCHEMES: [Scheme; 8] = [
    Scheme::SkipNotified,
    Scheme::BailOut,
    Scheme::DriverRange,
    Scheme::IntervalTree,
    Scheme::IntervalTreeChunks,
    Scheme::TryLock,
    Scheme::TryLockChunks,
    Scheme::Deferred,
];

const SEED: u64 = 1;

fn main() {
    // VMAs of 8 MiB, with 2 MiB a chunk where there are chunks.
    let whole = Load { chunk_pages: 2_048, victims: 32, needed: 0.25, ..Load::default() };
    let parts = Load { chunks: 4, chunk_pages: 512, ..whole };
    let long = Load { hold: Duration::from_secs(2), ..whole };
    table("An interest a VMA", Load { coverage: 0.5, duty: 0.5, ..whole });
    table("An interest a VMA, locks busy", Load { coverage: 0.5, duty: 0.9, ..whole });
    table("The same, held for 2 s at a time", Load { coverage: 0.5, duty: 0.9, ..long });
    table("An interest a chunk", Load { coverage: 0.2, duty: 0.5, ..parts });
    table("An interest a chunk, locks busy", Load { coverage: 0.2, duty: 0.9, ..parts });
}

fn table(name: &str, load: Load) {
    println!("\n{name}: coverage {}, duty {}\n", load.coverage, load.duty);
    println!(
        "| scheme | reaped | closed form | first MiB (s) | extra victims | took (s) | attempts |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for scheme in SCHEMES {
        let of = load.measure(scheme, SEED);
        let expected =
            load.expected(scheme).map_or("none".to_owned(), |share| format!("{share:.3}"));
        let first =
            of.first_mib.map_or("never".to_owned(), |at| format!("{:.1}", at.as_secs_f64()));
        println!(
            "| `{scheme}` | {:.3} | {expected} | {first} | {} | {:.1} | {} |",
            of.share(),
            of.extra_victims,
            of.took.as_secs_f64(),
            of.attempts
        );
    }
}
