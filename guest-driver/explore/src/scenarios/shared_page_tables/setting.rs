// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use guest_driver::hugetlb::{Flaw, Scheme};

/// A scenario with one way to keep page tables in place.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The actors, and the file that they share.
    pub scenario: Scenario,
    /// The way.
    pub scheme: Scheme,
    /// A mistake.
    pub flaw: Option<Flaw>,
}

/// The actors, and the file that they share.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// Page tables that map the whole file, with two entries each.
    pub pieces: usize,
    /// Address spaces.
    pub spaces: usize,
    /// Those of them that map the file from the start.
    pub mapped: &'static [usize],
    /// Pages that address spaces have faulted in from the start.
    pub faulted: &'static [(usize, usize)],
    /// An actor each.
    pub actors: &'static [Other],
}

/// What an actor does, once. A page that it needs is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// Touches so many pages in this address space.
    Fault(usize, usize),
    /// Touches a page of a private mapping in this address space, without memory for a copy.
    CowFault(usize),
    /// Removes a page from the file.
    Punch,
    /// Ends the file after its first page.
    Truncate,
    /// This address space unmaps the file, and a file that nothing maps is evicted.
    Exit(usize),
    /// This address space unmaps the file, maps it again and touches a page.
    Remap(usize),
    /// The first becomes the second, which touches a page and exits.
    Fork(usize, usize),
    /// This address space unmaps the file and maps private pages by what page tables it has.
    MapPrivate(usize),
    /// This address space stops sharing and touches a page.
    Unshare(usize),
    /// The VMA of this address space is split.
    Split(usize),
    /// References to pages of page tables, without a lock.
    Speculate,
    /// Looks up pages in this address space without a lock.
    GupFast(usize),
    /// Uses free pages as something else.
    Reuse,
}
