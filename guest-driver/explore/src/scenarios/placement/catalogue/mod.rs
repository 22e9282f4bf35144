// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configurations by name. The schemes of a kind have a file, with what is known to be wrong of them
//! and what is meant to work.

mod in_place;
mod parts;
mod scenarios;
mod swapped;

use parts::Named;

use crate::{Kind, Notes};

/// All of them.
pub(super) fn configurations() -> Vec<Named> {
    let (good, mut all): (Vec<Named>, Vec<Named>) = in_place::all()
        .into_iter()
        .chain(swapped::all())
        .partition(|named| named.kind == Kind::Good);
    all.extend(good);
    all
}

pub(super) const NOTES: Notes = Notes {
    intro: "\
A configuration is a scenario with one scheme: tasks that allocate, a writer that changes the nodes of their \
cpuset, and in some another thread that changes a policy, over two to four nodes of eight pages. Schemes and \
invariants are listed in [model.md](../../design/model.md#placement).
",
    good: "",
    small: "",
    candidates: "\
A proposal that nobody built: *no-rebind* never runs out of memory here. But a nodemask that is dropped since \
the cpuset has none of its nodes stays dropped, and so limits nothing once the cpuset has them again.

And what the model shows of Linux as it understands it: between the update of a task's nodes and that of its \
VMAs' policies, a VMA that is bound gets a page of any node of the new cpuset, where neither its old policy nor \
its new one allows one. No report of this is known. Linux prefers it to running out of memory.

The other proposal, *counted-zonelists*, was to make the result of one look valid for the whole allocation. It is valid, and out of date: once the cpuset has moved on, others may take all memory of the nodes that the allocation still walks, and the OOM killer is invoked although the cpuset has a node with free memory (*counted-zonelists-as-proposed*). A look before the OOM killer whether the set still is the current one, a load and a compare, mends that; the good configurations have it.
",
};
