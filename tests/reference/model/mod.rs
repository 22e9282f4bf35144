// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The reference: what each page of the guest's memory holds, what keeps it from being discarded, and what
//! the daemon owes for each step.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use crate::calls::{Refusal, Weather};
use crate::memory::{self, PAGE, PAGES_A_REGION, REGIONS, Span, region_bytes, region_of, watched};
pub(crate) use steps::{Client, FullCall, Named, Step};

/// Pages that are pinned, each with the one behind it: few, so that one is pinned often. Two of these pairs
/// meet where regions meet.
pub(crate) const PINNED: [usize; 3] = [3, PAGES_A_REGION - 2, PAGES_A_REGION];
/// Pages of a pin.
pub(crate) const PIN_PAGES: u64 = 2;
/// Clients that say nothing, at the most: they take the places of others.
const MOST_SILENT: usize = 3;

/// Where the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In this process, with its clock and its system calls: one that ends leaves nothing to the next.
    Here,
    /// Under a keeper: the next one goes on with all that it had.
    Kept,
}

/// What the configuration space says of hinting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hinting {
    Stop,
    Done,
    /// A round; whether the driver has begun it.
    Round {
        begun: bool,
    },
}

/// What a step owes, and what the daemon is to keep.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) home: Home,
    /// The generation of the pattern in each page that was not discarded since.
    pub(crate) written: BTreeMap<usize, u16>,
    pub(crate) paused: bool,
    pub(crate) parked: bool,
    /// How often each pair of pages is pinned.
    pub(crate) pins: BTreeMap<usize, u32>,
    pub(crate) migrating: bool,
    unplugged: BTreeSet<usize>,
    /// The second file is sealed.
    pub(crate) sealed: bool,
    /// Regions that the daemon has learned to keep, since it was told of its memory.
    kept: BTreeSet<usize>,
    /// What free pages hold.
    poison: u32,
    pub(crate) hinting: Hinting,
    pub(crate) target: u64,
    forced: bool,
    /// Seconds between two polls of the statistics.
    pub(crate) interval: u32,
    /// Seconds until the next one.
    left: u32,
    silent: usize,
    /// A reclaim may have asked for statistics twice, and has had them once.
    pub(crate) asks_again: bool,
    pub(crate) weather: Weather,
    /// What the last step has to be answered with.
    pub(crate) answer: Answer,
}

/// The promise of an answer, and what is owed with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Bytes that the used length names.
    pub(crate) used: u32,
    /// The bits of the pages that are initialized.
    pub(crate) bits: Vec<bool>,
    /// Whether the request is done, or refused.
    pub(crate) is_done: bool,
    /// The driver is told that its configuration space has changed.
    pub(crate) tells: bool,
    /// The statistics buffer is returned.
    pub(crate) polls: bool,
}

impl Reference {
    fn new(home: Home) -> Self {
        Self {
            home,
            written: BTreeMap::new(),
            paused: false,
            parked: false,
            pins: BTreeMap::new(),
            migrating: false,
            unplugged: BTreeSet::new(),
            sealed: false,
            kept: BTreeSet::new(),
            poison: 0,
            hinting: Hinting::Stop,
            target: 0,
            forced: false,
            interval: 0,
            left: 0,
            silent: 0,
            asks_again: false,
            weather: Weather::Fair,
            answer: Answer::default(),
        }
    }

    /// Whether nothing is discarded.
    fn is_paused(&self) -> bool {
        self.paused || self.parked || self.migrating
    }

    fn is_pinned(&self, address: u64) -> bool {
        let pinned = |page: &usize| {
            let start = memory::address(*page);
            (start..start + PIN_PAGES * PAGE).contains(&address)
        };
        self.pins.keys().any(pinned)
    }

    /// Takes a chain that discards what it names; returns the pages that are zero by that.
    fn discard(&mut self, spans: &[Span], refusal: Option<Refusal>) -> BTreeSet<u64> {
        let mut zeroed = BTreeSet::new();
        if self.is_paused() {
            return zeroed;
        }
        let refuses = refusal.filter(|refusal| refusal.errno != libc::EINTR);
        let (mut calls, mut last, mut refused) = (0, None, false);
        for page in memory::Named::of(spans).whole_pages() {
            let Some(region) = region_of(page).filter(|region| !self.unplugged.contains(region))
            else {
                continue;
            };
            if self.is_pinned(page) || self.kept.contains(&region) {
                continue;
            }
            if self.sealed && region == 1 {
                (calls, last) = (calls + 1, None);
                self.kept.insert(region);
                continue;
            }
            // A page that follows the one before goes in the same call.
            if last != page.checked_sub(PAGE).map(|before| (region, before)) {
                refused = refuses.is_some_and(|refusal| refusal.calls.hit(calls));
                calls += 1;
            }
            last = Some((region, page));
            if !refused {
                zeroed.insert(page);
            } else if refuses.is_some_and(|refusal| refusal.errno == libc::EOPNOTSUPP) {
                self.kept.insert(region);
            }
        }
        zeroed.iter().filter_map(|page| watched(*page)).for_each(|page| {
            self.written.remove(&page);
        });
        zeroed
    }

    fn report(&mut self, spans: &[Span], refusal: Option<Refusal>) {
        let zeroed = match self.poison {
            0 => self.discard(spans, refusal),
            // Zeros would not be what the guest expects.
            _ => BTreeSet::new(),
        };
        let bytes = memory::Named::of(spans).bytes_if_all_in(&zeroed);
        self.answer.used = bytes.map_or(0, |bytes| u32::try_from(bytes).unwrap_or_default());
    }

    fn inflate(&mut self, named: &Named) {
        let whole: Vec<Span> =
            named.spans.iter().map(|span| Span { cut: false, ..*span }).collect();
        let zeroed = self.discard(&whole, named.refusal);
        let is_zero = |pfn| self.poison == 0 && zeroed.contains(&(pfn * PAGE));
        self.answer.bits = named.spans.iter().flat_map(Span::pfns).map(is_zero).collect();
    }

    /// The daemon is told of all memory again.
    fn new_table(&mut self) {
        self.kept.clear();
    }

    /// Bytes of memory that the guest has.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let plugged = (0..REGIONS).filter(|region| !self.unplugged.contains(region));
        plugged.map(region_bytes).sum()
    }

    /// Whether the guest can go without so much: half of what a small one has.
    fn is_safe(&self, bytes: u64) -> bool {
        bytes <= self.memory_bytes() / 2
    }

    /// The target as the guest reads it.
    pub(crate) fn target_read(&self) -> u64 {
        if self.forced || self.is_safe(self.target) { self.target } else { 0 }
    }

    fn runs_round(&self) -> bool {
        matches!(self.hinting, Hinting::Round { .. })
    }

    /// Another daemon begins, with nothing from the one before.
    fn forget(&mut self) {
        (self.paused, self.parked) = (false, false);
        self.pins.clear();
        self.hinting = Hinting::Stop;
        (self.target, self.forced) = (0, false);
        (self.interval, self.left, self.silent) = (0, 0, 0);
    }

    /// The VMM has connected again, and says what its driver said first.
    fn connect(&mut self) {
        self.new_table();
        self.asks_again = false;
        self.poison = 0;
        self.left = self.interval;
    }

    fn advance(&mut self, seconds: u32) {
        if self.interval == 0 {
            return;
        }
        match self.left.checked_sub(seconds) {
            None | Some(0) => {
                self.answer.polls = true;
                self.left = self.interval - (seconds - self.left) % self.interval;
            }
            Some(left) => self.left = left,
        }
    }

    fn operate(&mut self, step: &Step) {
        match step {
            Step::Pause => self.paused = true,
            Step::Resume => self.paused = false,
            Step::Park => {
                self.answer.is_done = !self.is_paused();
                self.parked |= self.answer.is_done;
                self.asks_again |= self.answer.is_done;
            }
            Step::Unpark => self.parked = false,
            Step::Pin { page } => *self.pins.entry(*page).or_default() += 1,
            Step::Unpin { page } => {
                let count = self.pins.get_mut(page);
                self.answer.is_done = count.is_some();
                if let Some(count) = count {
                    *count -= 1;
                }
                self.pins.retain(|_, count| *count > 0);
            }
            Step::Target { bytes, force } => {
                self.answer.is_done = *force || self.is_safe(*bytes);
                self.answer.tells = self.answer.is_done;
                if self.answer.is_done {
                    (self.target, self.forced) = (*bytes, *force);
                }
            }
            Step::StartHinting => {
                self.answer.is_done = !self.runs_round();
                self.answer.tells = self.answer.is_done;
                if self.answer.is_done {
                    self.hinting = Hinting::Round { begun: false };
                }
            }
            Step::StopHinting => {
                self.answer.is_done = self.runs_round();
                self.answer.tells = self.answer.is_done;
                if self.answer.is_done {
                    self.hinting = Hinting::Done;
                }
            }
            Step::Refresh => self.answer.polls = true,
            Step::Interval { seconds } if self.interval != *seconds => {
                (self.interval, self.left) = (*seconds, *seconds);
            }
            Step::Client(Client::Silent) => self.silent += 1,
            _ => {}
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { page, generation } => {
                self.written.insert(*page, *generation);
            }
            Step::Report(Named { spans, refusal }) => self.report(spans, *refusal),
            Step::FullCall { span, .. } => self.report(&[*span], None),
            Step::Inflate(named) => self.inflate(named),
            Step::BeginHints => {
                if let Hinting::Round { begun } = &mut self.hinting {
                    *begun = true;
                }
            }
            Step::Hint(Named { spans, refusal }) => {
                if self.hinting == (Hinting::Round { begun: true }) {
                    self.discard(spans, *refusal);
                }
            }
            Step::EndHints => {
                if self.hinting == (Hinting::Round { begun: true }) {
                    self.hinting = Hinting::Done;
                    self.answer.tells = true;
                    // It is told of that a little later.
                    self.advance(1);
                }
            }
            Step::Poison { value } => self.poison = *value,
            Step::KillOverReport { spans } => match self.home {
                Home::Here => {
                    self.forget();
                    self.connect();
                    self.report(spans, None);
                }
                Home::Kept => {
                    self.new_table();
                    self.report(spans, None);
                    // A round does not outlive its daemon.
                    if self.runs_round() {
                        self.hinting = Hinting::Done;
                    }
                }
            },
            Step::Migrate { on } => self.migrating = *on,
            Step::Unplug { region } => {
                self.unplugged.insert(*region);
                self.new_table();
            }
            Step::Plug { region } => {
                self.unplugged.remove(region);
                self.new_table();
            }
            Step::Seal => self.sealed = true,
            Step::Reconnect => self.connect(),
            Step::Advance { seconds } => self.advance(*seconds),
            Step::Weather(weather) => self.weather = *weather,
            Step::Deflate { .. } => {}
            step => self.operate(step),
        }
    }
}

impl ReferenceStateMachine for Reference {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        prop_oneof![9 => Just(Home::Here), 1 => Just(Home::Kept)].prop_map(Self::new).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        steps::any_step(state.home)
    }

    fn preconditions(state: &Self, step: &Step) -> bool {
        let here = state.home == Home::Here;
        match step {
            // Calls of another process cannot be refused.
            Step::Report(named) | Step::Inflate(named) | Step::Hint(named) => {
                here || named.refusal.is_none()
            }
            // It takes some time, in which they may be asked for.
            Step::Park => state.interval == 0,
            Step::Weather(_) | Step::Advance { .. } => here,
            // There it is told a moment later, by the clock of the machine.
            Step::EndHints => here,
            Step::Client(Client::ComesToNoDescriptor) => here && state.interval == 0,
            Step::Client(Client::Silent) => state.silent < MOST_SILENT,
            // The log of dirty pages is that of the first daemon; what is sealed cannot be mapped again.
            Step::KillOverReport { .. } => !state.migrating && !state.sealed,
            Step::Migrate { on } => *on != state.migrating,
            // The log of dirty pages covers what was plugged when it was set.
            Step::Unplug { region } => {
                !state.migrating && !state.sealed && !state.unplugged.contains(region)
            }
            Step::Plug { region } => {
                !state.migrating && !state.sealed && state.unplugged.contains(region)
            }
            Step::Reconnect => !state.migrating && !state.sealed,
            Step::Seal => !state.sealed,
            _ => true,
        }
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = Answer { is_done: true, ..Answer::default() };
        state.take(step);
        state
    }
}
