// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name: what is known to be wrong, each in the scenario that shows it, and
//! every way to report that is meant to work, in every scenario.

mod candidates;
mod coupled;
mod good;
mod known_bad;
mod parts;
mod scenarios;
mod smallest;
mod zero_pages;

pub(super) use parts::Named;

use crate::Notes;

/// All of them.
pub(super) fn configurations() -> Vec<Named> {
    let wrong = known_bad::known_bad().into_iter().chain(coupled::known_bad());
    let wrong = wrong.chain(zero_pages::known_bad()).chain(candidates::candidates());
    wrong.chain(good::good()).chain(coupled::good()).chain(smallest::smallest()).collect()
}

pub(super) const NOTES: Notes = Notes {
    intro: "\
A configuration is a scenario with one way to report: a few CPUs, the reporter, the host, and other \
actors that isolate, offline or add memory, over a few sections of eight pages. Trackers and invariants \
are listed in [model.md](../../design/model.md).
",
    good: "\
`reported-flag` promises less than the others: a report follows the next free of a large enough block. \
Here such a free precedes the check for lost reports. In the scenarios `isolators` and `cma`, *pull* \
puts back what it held pageblock by pageblock, which no kernel does; see `pull-isolated-half` below. \
`migratetype-kept` is required of *isolate*; of *pull*, which makes pageblocks movable \
(`pull-makes-movable`), only for those of a reserve.
",
    small: "One CPU that allocates and frees one block, and one pass.\n",
    candidates: "\
What the model shows of mainline's rules as it understands them, and of what the scheme would do by the \
rules of kernels whose isolation forgets a pageblock's migratetype. No report of these is known. What real \
Linux did with them is in [findings.md](../findings.md).
",
};
