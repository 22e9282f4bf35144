// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A configuration without its model's types: all that search, table and command line know.

use core::fmt;
use std::sync::Arc;

use crate::model::{Configuration, Invariant, Kind, Model, Notes, Run, Violation};
use crate::thread;

/// A model without its types.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// Subject, in a few words.
    pub about: &'static str,
    /// Text on its page.
    pub notes: Notes,
    /// Builds its configurations.
    pub cases: fn() -> Vec<Case>,
}

impl Entry {
    /// The row of a model.
    pub const fn of<M: Model>() -> Self {
        Self { name: M::NAME, about: M::ABOUT, notes: M::NOTES, cases: cases::<M> }
    }

    /// The configuration of this name.
    pub fn case(&self, name: &str) -> Option<Case> {
        (self.cases)().into_iter().find(|case| case.name == name)
    }
}

/// Every configuration of a model.
pub fn cases<M: Model>() -> Vec<Case> {
    M::configurations().into_iter().map(Case::new::<M>).collect()
}

type Body = Arc<dyn Fn(u64) -> Result<(), Violation> + Send + Sync>;

/// A configuration that can be run.
#[derive(Clone)]
pub struct Case {
    /// Name of its model.
    pub model: &'static str,
    /// Name on the command line.
    pub name: String,
    /// What it is, in words.
    pub about: String,
    /// Name of the scenario that it runs.
    pub scenario: &'static str,
    /// What a search should find.
    pub kind: Kind,
    /// Names of the invariants of which a search finds one.
    pub breaks: Vec<&'static str>,
    /// Small enough for every schedule with a bounded number of preemptions.
    pub small: bool,
    assertion: fn(String) -> Violation,
    body: Body,
}

impl Case {
    fn new<M: Model>(configuration: Configuration<M::Setting, M::Invariant>) -> Self {
        let Configuration { name, about, scenario, setting, kind, breaks, small } = configuration;
        Self {
            model: M::NAME,
            name,
            about,
            scenario,
            kind,
            breaks: breaks.iter().map(|invariant| invariant.name()).collect(),
            small,
            assertion: |what| Violation::new(broken_by::<M::Invariant>(&what), what),
            body: Arc::new(move |seed| run::<M>(&setting, seed)),
        }
    }

    /// Whether `pattern` is its name; in a pattern `*` stands for any characters.
    pub fn is_named(&self, pattern: &str) -> bool {
        let mut parts = pattern.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = self.name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some((_, behind)) = rest.split_once(part) else { return false };
            rest = behind;
        }
        rest.ends_with(last)
    }

    /// Runs it once. The decisions of its actors follow from `seed`; the order of their steps is the
    /// scheduler's, or the machine's.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn run(&self, seed: u64) -> Result<(), Violation> {
        (self.body)(seed)
    }

    /// The violation that a panic is.
    pub fn assertion(&self, what: String) -> Violation {
        (self.assertion)(what)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, name, kind, breaks, .. } = self;
        f.debug_struct("Case")
            .field("model", model)
            .field("name", name)
            .field("kind", kind)
            .field("breaks", breaks)
            .finish_non_exhaustive()
    }
}

/// The invariant that a panic breaks, which says `what`.
fn broken_by<I: Invariant>(what: &str) -> I {
    // The scheduler's own word begins with `deadlock!`.
    if what.starts_with("deadlock") {
        I::DEADLOCK
    } else if what.starts_with("use after free: ") {
        I::USE_AFTER_FREE
    } else {
        I::ASSERTIONS
    }
}

/// One run: the actors side by side, and what must hold when all is quiet.
fn run<M: Model>(setting: &M::Setting, seed: u64) -> Result<(), Violation> {
    let actors = M::actors(setting, seed);
    let run = Arc::new(Run::new(actors.len()));
    let world = M::world(setting, Arc::clone(&run))
        .map_err(|what| Violation::new(M::Invariant::ASSERTIONS, what))?;
    let world = Arc::new(world);
    let spawn = |actor: crate::Actor<M::World>| {
        let (world, run) = (Arc::clone(&world), Arc::clone(&run));
        thread::spawn(move || {
            actor(&world);
            run.done();
        })
    };
    let handles: Vec<_> = actors.into_iter().map(spawn).collect();
    handles.into_iter().for_each(thread::Handle::join);
    if !run.is_over() {
        M::at_rest(setting, &world);
    }
    run.violation().map_or(Ok(()), |violation| Err(violation.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Holds {
        Assertions,
        Waits,
        Memory,
    }

    impl Invariant for Holds {
        const ALL: &'static [Self] = &[Self::Assertions, Self::Waits, Self::Memory];
        const ASSERTIONS: Self = Self::Assertions;
        const DEADLOCK: Self = Self::Waits;
        const USE_AFTER_FREE: Self = Self::Memory;

        fn name(self) -> &'static str {
            "holds"
        }

        fn broken(self) -> &'static str {
            "does not hold"
        }
    }

    #[test]
    fn panic_breaks_the_invariant_that_it_names() {
        let of = [
            ("deadlock: a waits for b, which a holds", Holds::Waits),
            ("deadlock! blocked tasks: [..]", Holds::Waits),
            ("use after free: copy 1 in zonelists 0 is read", Holds::Memory),
            ("bad page state", Holds::Assertions),
        ];
        assert!(of.iter().all(|&(what, broken)| broken_by::<Holds>(what) == broken));
    }
}
