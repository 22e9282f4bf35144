// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What libFuzzer prints, as far as it is used here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

/// How often progress is printed.
const PROGRESS: Duration = Duration::from_secs(10);

/// How far a target has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Figures {
    pub(super) executions: u64,
    /// Edges that were reached (`cov`).
    pub(super) coverage: u64,
    /// Edges that there are in what the target is linked of.
    pub(super) edges: u64,
    /// Edges with how often each was passed (`ft`).
    pub(super) features: u64,
    /// Inputs in the corpus.
    pub(super) inputs: u64,
}

impl Figures {
    /// Executions a second.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a figure for a table"
    )]
    pub(super) fn rate(self, seconds: f64) -> u64 {
        (self.executions as f64 / seconds) as u64
    }
}

/// The lines of one target so far.
#[derive(Default)]
pub(super) struct Said {
    figures: Figures,
    failure: Option<String>,
    panics: bool,
    input: Option<PathBuf>,
    printed: Option<Instant>,
}

impl Said {
    /// Takes note of a line. Says whether it is progress that is worth to be printed.
    pub(super) fn hears(&mut self, line: &str) -> bool {
        if std::mem::take(&mut self.panics) && self.failure.is_none() {
            self.failure = Some(line.trim().to_owned());
        }
        self.panics = line.starts_with("thread ") && line.contains(" panicked at ");
        if let Some(error) = line.split_once("ERROR: ").map(|(_, error)| error)
            && self.failure.is_none()
        {
            self.failure = Some(error.to_owned());
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.input = Some(PathBuf::from(path.trim()));
        }
        if let Some(units) = line.strip_prefix("stat::number_of_executed_units:") {
            self.figures.executions = units.trim().parse().unwrap_or(self.figures.executions);
        }
        if let Some((before, _)) = line.split_once(" inline 8-bit counters)")
            && let Some((_, edges)) = before.rsplit_once('(')
        {
            self.figures.edges = edges.parse().unwrap_or(0);
        }
        let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once('\t'))
        else {
            return false;
        };
        let Ok(executions) = number.trim().parse() else { return false };
        let figure = |name: &str| {
            let value = rest.split_once(name)?.1.trim_start();
            value.split([' ', '/']).next()?.parse().ok()
        };
        let before = self.figures;
        self.figures = Figures {
            executions,
            coverage: figure("cov: ").unwrap_or(before.coverage),
            edges: before.edges,
            features: figure("ft: ").unwrap_or(before.features),
            inputs: figure("corp: ").unwrap_or(before.inputs),
        };
        let due = self.printed.is_none_or(|printed| printed.elapsed() >= PROGRESS);
        if due {
            self.printed = Some(Instant::now());
        }
        due
    }

    pub(super) fn figures(&self) -> Figures {
        self.figures
    }

    /// The first thing that went wrong: what a panic said, or what libFuzzer calls it.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// The input with which it did.
    pub(super) fn input(&self) -> Option<PathBuf> {
        self.input.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_last_line() {
        let mut said = Said::default();
        assert!(!said.hears("INFO: Seed: 17"));
        assert!(
            !said.hears("INFO: Loaded 1 modules   (826 inline 8-bit counters): 826 [0x5, 0x9), ")
        );
        assert!(said.hears("#2\tINITED cov: 17 ft: 18 corp: 1/1b exec/s: 0 rss: 27Mb"));
        assert!(!said.hears("#90\tNEW    cov: 20 ft: 30 corp: 4/9b lim: 4 exec/s: 0"));
        said.hears("stat::number_of_executed_units: 123");
        let expected =
            Figures { executions: 123, coverage: 20, edges: 826, features: 30, inputs: 4 };
        assert_eq!(said.figures(), expected);
        assert_eq!((said.failure(), said.input()), (None, None));
        assert_eq!(said.figures().rate(2.0), 61);
    }

    #[test]
    fn failure_is_the_panic_and_not_its_signal() {
        let mut said = Said::default();
        for line in [
            "thread '<unnamed>' (9) panicked at src/a.rs:1:2:",
            "a page was lost",
            "==9== ERROR: libFuzzer: deadly signal",
            "artifact_prefix='/t/'; Test unit written to /t/chains-crash-1",
        ] {
            said.hears(line);
        }
        assert_eq!(said.failure().as_deref(), Some("a page was lost"));
        assert_eq!(said.input(), Some(PathBuf::from("/t/chains-crash-1")));
        let mut said = Said::default();
        said.hears("==9== ERROR: libFuzzer: timeout after 20 seconds");
        assert_eq!(said.failure().as_deref(), Some("libFuzzer: timeout after 20 seconds"));
    }
}
