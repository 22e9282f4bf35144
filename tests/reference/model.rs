// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reference: what each piece of the guest's memory holds, and what keeps it from being discarded.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// Pieces of the guest's memory.
pub(crate) const PIECES: usize = 24;
/// Pieces of each region. The first two regions meet; the first and the last are of one file.
pub(crate) const PIECES_A_REGION: usize = PIECES / REGIONS;
pub(crate) const REGIONS: usize = 3;
/// Pieces that a report names at the most.
const MOST_REPORTED: usize = 6;

/// Pieces that are pinned: few, so that one is pinned often. Two of them meet where regions meet.
const PINNED: [usize; 3] = [3, PIECES_A_REGION - 1, PIECES_A_REGION];

/// One step.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The guest writes a pattern of this generation to a piece.
    Write {
        piece: usize,
        generation: u16,
    },
    /// The guest reports pieces, in one chain, each a descriptor.
    Report {
        pieces: Vec<usize>,
    },
    /// The daemon is killed with a report under way; the next one has to end it.
    KillOverReport {
        piece: usize,
    },
    /// The operator.
    Pause,
    Resume,
    Pin {
        piece: usize,
    },
    Unpin {
        piece: usize,
    },
    /// The VMM migrates, or does not any more.
    Migrate {
        on: bool,
    },
    /// The VMM unplugs the memory of a region, or plugs it in again.
    Unplug {
        region: usize,
    },
    Plug {
        region: usize,
    },
    /// The VMM disconnects and connects again, under the same driver.
    Reconnect,
}

/// What a daemon is to keep.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    /// The generation of the pattern in each piece that was not discarded since.
    pub(crate) written: BTreeMap<usize, u16>,
    paused: bool,
    /// How often each piece is pinned.
    pins: BTreeMap<usize, u32>,
    migrating: bool,
    unplugged: BTreeSet<usize>,
}

impl Reference {
    /// Whether the daemon discards a piece that is reported now.
    fn discards(&self, piece: usize) -> bool {
        let kept = self.paused || self.migrating || self.pins.contains_key(&piece);
        !kept && !self.unplugged.contains(&region_of(piece))
    }

    fn discard(&mut self, piece: usize) {
        if self.discards(piece) {
            self.written.remove(&piece);
        }
    }
}

/// The region that a piece lies in.
pub(crate) fn region_of(piece: usize) -> usize {
    piece / PIECES_A_REGION
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let piece = || 0..PIECES;
        let pinned = || proptest::sample::select(&PINNED[..]);
        // The first holds the rings.
        let region = || 1..REGIONS;
        let pieces = proptest::collection::vec(piece(), 1..=MOST_REPORTED);
        prop_oneof![
            20 => (piece(), 1..1000_u16)
                .prop_map(|(piece, generation)| Step::Write { piece, generation }),
            20 => pieces.prop_map(|pieces| Step::Report { pieces }),
            1 => piece().prop_map(|piece| Step::KillOverReport { piece }),
            2 => Just(Step::Pause),
            3 => Just(Step::Resume),
            5 => pinned().prop_map(|piece| Step::Pin { piece }),
            5 => pinned().prop_map(|piece| Step::Unpin { piece }),
            3 => any::<bool>().prop_map(|on| Step::Migrate { on }),
            2 => region().prop_map(|region| Step::Unplug { region }),
            2 => region().prop_map(|region| Step::Plug { region }),
            1 => Just(Step::Reconnect),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, step: &Step) -> bool {
        match step {
            // Whichever daemon serves it, it is discarded. The log of dirty pages is the first one's.
            Step::KillOverReport { piece } => state.discards(*piece),
            Step::Unpin { piece } => state.pins.contains_key(piece),
            Step::Migrate { on } => *on != state.migrating,
            // The log of dirty pages covers what was plugged when it was set.
            Step::Unplug { region } => !state.migrating && !state.unplugged.contains(region),
            Step::Plug { region } => !state.migrating && state.unplugged.contains(region),
            Step::Reconnect => !state.migrating,
            Step::Write { .. }
            | Step::Report { .. }
            | Step::Pause
            | Step::Resume
            | Step::Pin { .. } => true,
        }
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match step {
            Step::Write { piece, generation } => {
                state.written.insert(*piece, *generation);
            }
            Step::Report { pieces } => pieces.iter().for_each(|piece| state.discard(*piece)),
            Step::KillOverReport { piece } => {
                state.discard(*piece);
                // Nothing kept them for the next daemon.
                (state.paused, state.pins) = (false, BTreeMap::new());
            }
            Step::Pause => state.paused = true,
            Step::Resume => state.paused = false,
            Step::Pin { piece } => *state.pins.entry(*piece).or_default() += 1,
            Step::Unpin { piece } => {
                if let Some(count) = state.pins.get_mut(piece) {
                    *count -= 1;
                }
                state.pins.retain(|_, count| *count > 0);
            }
            Step::Migrate { on } => state.migrating = *on,
            Step::Unplug { region } => {
                state.unplugged.insert(*region);
            }
            Step::Plug { region } => {
                state.unplugged.remove(region);
            }
            // It was the connection before that migrated.
            Step::Reconnect => state.migrating = false,
        }
        state
    }
}
