// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A model: a world, the actors in it, what must hold, and configurations of known verdict.

use core::fmt::Debug;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// A model that the explorer can search.
///
/// A sibling is a folder of `scenarios` with an implementation of this, and a row of
/// [`MODELS`](crate::MODELS).
///
/// Two CPUs that count, with the counter's lock and without:
///
/// ```
/// use explore::{Actor, Configuration, Invariant, Kind, Model, Notes, Run, cases};
/// use guest_driver::sync::{AtomicU64, Lock, Ordering};
/// use std::sync::Arc;
///
/// #[derive(Clone, Copy, Debug)]
/// enum Holds { EveryCountKept, ModelAssertionsHold }
///
/// impl Invariant for Holds {
///     const ALL: &'static [Self] = &[Self::EveryCountKept, Self::ModelAssertionsHold];
///     const ASSERTIONS: Self = Self::ModelAssertionsHold;
///     fn name(self) -> &'static str {
///         match self {
///             Self::EveryCountKept => "every-count-kept",
///             Self::ModelAssertionsHold => "model-assertions-hold",
///         }
///     }
///     fn broken(self) -> &'static str {
///         match self {
///             Self::EveryCountKept => "a count is lost",
///             Self::ModelAssertionsHold => "an assertion fails",
///         }
///     }
/// }
///
/// struct World { run: Arc<Run<Holds>>, lock: Lock<()>, count: AtomicU64 }
///
/// struct Counter;
///
/// impl Model for Counter {
///     const NAME: &'static str = "counter";
///     const ABOUT: &'static str = "two CPUs that count";
///     const NOTES: Notes = Notes::NONE;
///     type Invariant = Holds;
///     type Setting = bool; // whether the lock is taken
///     type World = World;
///
///     fn configurations() -> Vec<Configuration<bool, Holds>> {
///         let of = |name: &str, locked, kind, breaks| Configuration {
///             name: name.to_owned(), about: name.to_owned(), scenario: "two CPUs",
///             setting: locked, kind, breaks, small: true,
///         };
///         vec![
///             of("locked", true, Kind::Good, &[]),
///             of("unlocked", false, Kind::KnownBad, &[Holds::EveryCountKept]),
///         ]
///     }
///
///     fn world(_: &bool, run: Arc<Run<Holds>>) -> Result<World, String> {
///         Ok(World { run, lock: Lock::new(()), count: AtomicU64::new(0) })
///     }
///
///     fn actors(&locked: &bool, _seed: u64) -> Vec<Actor<World>> {
///         let count = move |world: &World| {
///             let _guard = locked.then(|| world.lock.lock());
///             let before = world.count.load(Ordering::SeqCst);
///             world.count.store(before + 1, Ordering::SeqCst);
///         };
///         vec![Box::new(count), Box::new(count)]
///     }
///
///     fn at_rest(_: &bool, world: &World) {
///         if world.count.load(Ordering::SeqCst) != 2 {
///             world.run.violate(Holds::EveryCountKept, "two CPUs have counted".to_owned());
///         }
///     }
/// }
///
/// // With real threads; `search` runs it in every interleaving.
/// assert_eq!(cases::<Counter>()[0].run(0), Ok(()));
/// ```
pub trait Model: Sized + 'static {
    /// Name on the command line.
    const NAME: &'static str;
    /// Subject of the model, in a few words.
    const ABOUT: &'static str;
    /// Text of the model's own on its page.
    const NOTES: Notes;

    /// What must hold.
    type Invariant: Invariant;
    /// What distinguishes one configuration from another.
    type Setting: Clone + Debug + Send + Sync + 'static;
    /// What the actors of a run share.
    type World: Send + Sync + 'static;

    /// Every configuration, those that are known to break an invariant first.
    fn configurations() -> Vec<Configuration<Self::Setting, Self::Invariant>>;

    /// Builds the world of one run; what breaks an invariant there is recorded in `run`.
    ///
    /// # Errors
    /// A sentence, if the setting is impossible.
    fn world(
        setting: &Self::Setting,
        run: Arc<Run<Self::Invariant>>,
    ) -> Result<Self::World, String>;

    /// The actors of one run, a thread each. Their decisions follow from `seed`; the order of their
    /// steps is the scheduler's.
    fn actors(setting: &Self::Setting, seed: u64) -> Vec<Actor<Self::World>>;

    /// Checks what must hold once all actors are done.
    fn at_rest(setting: &Self::Setting, world: &Self::World);
}

/// The body of an actor.
pub type Actor<W> = Box<dyn FnOnce(&W) + Send>;

/// Something that must hold in every schedule; an enum with kebab-case names.
pub trait Invariant: Copy + Debug + Send + Sync + 'static {
    /// All of them.
    const ALL: &'static [Self];
    /// The one that a panic breaks.
    const ASSERTIONS: Self;
    /// The one that a deadlock breaks (`guest_driver::waits`, or one that the scheduler finds).
    const DEADLOCK: Self = Self::ASSERTIONS;
    /// The one that a use after free breaks (`guest_driver::swapped::Slots`).
    const USE_AFTER_FREE: Self = Self::ASSERTIONS;

    /// Its name in output and tables.
    fn name(self) -> &'static str;

    /// The state that breaks it, in a few words.
    fn broken(self) -> &'static str;
}

/// A setting with its verdict.
#[derive(Clone, Debug)]
pub struct Configuration<S, I: 'static> {
    /// Name on the command line, unique in its model.
    pub name: String,
    /// What it is, in words.
    pub about: String,
    /// Name of the scenario that it runs.
    pub scenario: &'static str,
    /// The model's own.
    pub setting: S,
    /// What a search should find.
    pub kind: Kind,
    /// Invariants of which a search finds one, the best known first; none of a good one.
    pub breaks: &'static [I],
    /// Small enough for every schedule with a bounded number of preemptions.
    pub small: bool,
}

/// What a search of a configuration should find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Good,
    /// A mistake that was put there.
    KnownBad,
    /// A fault in what the model takes to be Linux as it is. It is a candidate until a real guest
    /// shows it.
    Candidate,
}

impl Kind {
    /// Its name in output for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::KnownBad => "known-bad",
            Self::Candidate => "candidate",
        }
    }
}

/// Text of a model on its page, in Markdown.
#[derive(Clone, Copy, Debug)]
pub struct Notes {
    /// What a configuration consists of, and where its invariants are explained.
    pub intro: &'static str,
    /// Below the table of good configurations.
    pub good: &'static str,
    /// Above the table of small ones.
    pub small: &'static str,
    /// Above the table of candidates.
    pub candidates: &'static str,
}

impl Notes {
    /// No text.
    pub const NONE: Self = Self { intro: "", good: "", small: "", candidates: "" };
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// The state that breaks it, in a few words.
    pub broken: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// A violation of `invariant`.
    pub fn new<I: Invariant>(invariant: I, what: String) -> Self {
        Self { invariant: invariant.name(), broken: invariant.broken(), what }
    }
}

/// One run: the actors that are not done, and the first violation.
///
/// Nothing here is a scheduling point: looking does not change what can happen.
#[derive(Debug)]
pub struct Run<I> {
    running: AtomicUsize,
    violation: OnceLock<Violation>,
    invariant: PhantomData<fn(I)>,
}

impl<I: Invariant> Run<I> {
    /// A run of so many actors.
    pub(crate) fn new(actors: usize) -> Self {
        let (running, violation) = (AtomicUsize::new(actors), OnceLock::new());
        Self { running, violation, invariant: PhantomData }
    }

    /// Records that an invariant did not hold; the first one counts.
    pub fn violate(&self, invariant: I, what: String) {
        let _ = self.violation.set(Violation::new(invariant, what));
    }

    /// The first violation.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.get()
    }

    /// Whether an invariant is broken, so that actors may stop.
    pub fn is_over(&self) -> bool {
        self.violation.get().is_some()
    }

    /// Actors that are not done.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// An actor is done.
    pub(crate) fn done(&self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}
