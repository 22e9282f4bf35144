// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The list of hypotheses, and how each is tried.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use vmm_integration::vmm::qemu::Toolbox;

use super::seen::Seen;
use super::{devices, linux, steps};
use crate::experiment::Case;
use crate::faults::plan::FaultKind;
use crate::store::Findings;

/// A way to try a hypothesis.
pub(super) enum How {
    /// A configuration of the explorer's model of reporting, with real threads.
    Threads(&'static str),
    /// The model, step by step.
    Steps(fn() -> Result<Seen>),
    /// Real Linux beside a device that remembers each report.
    Linux(fn(&Toolbox, &mut Findings) -> Result<Seen>),
    /// A fault, in the model and in Linux.
    Fault(FaultKind),
    /// Our daemon with the model as its guest.
    Daemon(fn(&Path) -> Result<Seen>),
    /// Our daemon with Linux as its guest.
    DaemonLinux(fn(&Toolbox, &Path) -> Result<Seen>),
    /// The reason why it cannot be tried.
    Not(&'static str),
}

/// A reported bug, or a hypothesis from reading the source.
pub(in crate::race) struct Hypothesis {
    /// Its name.
    name: &'static str,
    /// Its statement.
    pub(super) what: &'static str,
    /// The ways to try it, all of which a case takes.
    pub(super) how: &'static [How],
}

impl fmt::Display for &Hypothesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Case for &Hypothesis {}

const fn hypothesis(name: &'static str, what: &'static str, how: &'static [How]) -> Hypothesis {
    Hypothesis { name, what, how }
}

use How::{Daemon, DaemonLinux, Fault, Linux, Not, Steps, Threads};

/// All hypotheses.
pub(super) const HYPOTHESES: &[Hypothesis] = &[
    hypothesis(
        "freeze-during-report",
        "the reporter runs while the driver's freeze deletes the queue",
        &[Not("the guest would have to suspend and resume, which its agent does not survive")],
    ),
    hypothesis(
        "lost-notification",
        "a notification is lost, and the driver waits forever",
        &[Fault(FaultKind::LostInterrupt)],
    ),
    hypothesis(
        "queue-numbering",
        "the reporting queue's index counts all features, or negotiated ones only",
        &[Daemon(devices::numberings)],
    ),
    hypothesis(
        "reporting-without-poison",
        "a guest that clears freed pages reports without F_PAGE_POISON",
        &[DaemonLinux(devices::poison)],
    ),
    hypothesis(
        "large-pageblocks",
        "pageblocks as large as those of arm64 with 64 KiB pages are hardly ever reported",
        &[Steps(steps::large_pageblocks)],
    ),
    hypothesis(
        "extreme-orders",
        "the largest order is off by one, and order 0 counts as unset",
        &[Linux(linux::extreme_orders)],
    ),
    hypothesis(
        "double-isolation",
        "a pageblock is isolated twice, before 4.17",
        &[Threads("linux-4.16-double-isolation")],
    ),
    hypothesis(
        "free-behind-drain",
        "a freed page reaches a per-CPU list after the drain",
        &[Threads("linux-5.8-pcp-race")],
    ),
    hypothesis(
        "isolated-half-of-large-block",
        "half of a block larger than a pageblock is isolated, before 5.19",
        &[Steps(steps::isolated_half_of_a_large_block)],
    ),
    hypothesis(
        "marked-before-free",
        "`zone-bitmap` marks a block before it is on its free list",
        &[Threads("zone-bitmap-marked-before-free")],
    ),
    hypothesis(
        "reports-exhaust-memory",
        "reports hold so much memory that the guest runs out of it",
        &[Threads("no-watermark-guard")],
    ),
    hypothesis(
        "inhibited-discards",
        "the daemon discards nothing while discarding is inhibited",
        &[Daemon(devices::inhibited)],
    ),
    hypothesis(
        "huge-page-pool",
        "free huge pages in the pool are not reported",
        &[Linux(linux::pool_is_not_reported)],
    ),
    hypothesis(
        "used-length",
        "the device writes nothing, and sets a used length",
        &[Fault(FaultKind::UsedLength)],
    ),
    hypothesis(
        "memory-comes-online",
        "memory that comes online is reported at once",
        &[Linux(linux::online_is_reported)],
    ),
    hypothesis(
        "report-delay",
        "freed memory stays with the host for the delay before a report",
        &[Linux(linux::delay_before_a_report)],
    ),
    hypothesis(
        "pass-stops-on-low-memory",
        "a pass that stops on low memory leaves pages unreported",
        &[Linux(linux::pass_stops), Threads("reported-flag-low-watermark")],
    ),
    hypothesis(
        "low-zone-drops-request",
        "a zone below its watermark consumes the request for a pass",
        &[Linux(linux::zone_is_low), Threads("reported-flag-low-watermark")],
    ),
    hypothesis(
        "free-into-isolated-block",
        "a block freed while it is isolated is not reported after the undo",
        &[Steps(steps::freed_while_isolated), Threads("reported-flag-free-into-isolated")],
    ),
    hypothesis(
        "isolation-reports-again",
        "isolating half of a block reports the other half again",
        &[Linux(linux::isolation_reports_again), Steps(steps::isolation_reports_again)],
    ),
    hypothesis(
        "self-triggered-pass",
        "the reporter's own isolation triggers the next pass",
        &[Threads("section-bit-self-trigger")],
    ),
    hypothesis(
        "merging-loses-mark",
        "merging two reported blocks loses the mark",
        &[Linux(linux::merging_reports_again), Steps(steps::merging_loses_the_mark)],
    ),
    hypothesis(
        "put-back-on-isolated-half",
        "half of a pulled block is isolated, and the block is put back whole",
        &[Steps(steps::put_back_whole_on_an_isolated_half), Threads("pull-isolated-half")],
    ),
    hypothesis(
        "hung-backend",
        "offlining spins, and unloading waits, while a backend hangs",
        &[Linux(linux::hung_backend)],
    ),
    hypothesis(
        "order-changes-in-pass",
        "page_reporting_order changes during a pass",
        &[Linux(linux::order_changes_in_a_pass)],
    ),
    hypothesis(
        "reporting-makes-movable",
        "reporting turns unmovable blocks into movable ones",
        &[Linux(linux::reporting_makes_movable), Threads("pull-makes-movable")],
    ),
    hypothesis(
        "huge-page-waits",
        "a freed huge page waits on a per-CPU list",
        &[Linux(linux::huge_page_waits), Steps(steps::huge_page_waits)],
    ),
    hypothesis(
        "isolated-blocks-enlarge-budget",
        "isolated blocks enlarge the budget of a pass",
        &[Steps(steps::isolated_blocks_enlarge_the_budget)],
    ),
    hypothesis(
        "cleared-after-scan",
        "`section-bitmap` clears its summary bit after the scan",
        &[Threads("section-bitmap-cleared-after-scan")],
    ),
    hypothesis(
        "swapped-without-grace-period",
        "`zone-bitmap-rcu` swaps its bitmaps without a grace period",
        &[Threads("zone-bitmap-rcu-no-grace-period")],
    ),
    hypothesis(
        "split-behind-walk",
        "a block not yet reported is split, and its rest goes to a list already walked",
        &[Threads("reported-flag-split-behind-the-walk")],
    ),
    hypothesis(
        "isolation-forgets-type",
        "isolation forgets the pageblock's type, before 6.17",
        &[Threads("isolation-forgets-unmovable")],
    ),
];

/// A configuration of the explorer's model of reporting.
pub(super) fn configuration(name: &str) -> Option<explore::Case> {
    explore::model("reporting")?.case(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_configurations_exist() {
        let names: BTreeSet<&str> = HYPOTHESES.iter().map(|hypothesis| hypothesis.name).collect();
        assert_eq!(names.len(), HYPOTHESES.len());
        for how in HYPOTHESES.iter().flat_map(|hypothesis| hypothesis.how) {
            if let Threads(name) = how {
                assert!(configuration(name).is_some(), "{name}");
            }
        }
    }
}
