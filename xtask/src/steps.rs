// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps of a long command: what each took, and which failed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Steps that run one after the other, also past one that fails.
pub(crate) struct Steps {
    started: Instant,
    done: Vec<Step>,
}

struct Step {
    name: &'static str,
    took: Duration,
    failed: bool,
}

impl Steps {
    /// None so far.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), done: Vec::new() }
    }

    /// Runs a step, and prints its error.
    pub(crate) fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) {
        println!("\n=== {name}");
        let started = Instant::now();
        let result = step();
        if let Err(error) = &result {
            eprintln!("\n{name}: {error:#}");
        }
        self.done.push(Step { name, took: started.elapsed(), failed: result.is_err() });
    }

    /// Prints the seconds of each step.
    ///
    /// # Errors
    /// If one failed; names those that did.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n=== seconds\n{}", self.table());
        let seconds = self.started.elapsed().as_secs();
        let failed: Vec<_> =
            self.done.iter().filter(|step| step.failed).map(|step| step.name).collect();
        if !failed.is_empty() {
            bail!("failed after {seconds} s: {}", failed.join(", "));
        }
        println!("All passed, {seconds} s.");
        Ok(())
    }

    fn table(&self) -> String {
        self.done.iter().fold(String::new(), |mut table, step| {
            let failed = if step.failed { "  FAILED" } else { "" };
            // Writing to a string does not fail.
            let _ = writeln!(table, "{:6.1}  {}{failed}", step.took.as_secs_f64(), step.name);
            table
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn steps_go_on_past_one_that_fails() {
        let mut steps = Steps::start();
        let mut ran = Vec::new();
        steps.run("first", || {
            ran.push(1);
            Err(anyhow!("no luck"))
        });
        steps.run("second", || {
            ran.push(2);
            Ok(())
        });
        assert_eq!(ran, [1, 2]);
        let table = steps.table();
        let lines: Vec<_> = table.lines().map(|line| line.trim_start()).collect();
        assert!(lines[0].ends_with("first  FAILED") && lines[1].ends_with("second"), "{table}");
        let error = steps.finish().expect_err("one failed").to_string();
        assert!(error.starts_with("failed after ") && error.ends_with(" s: first"), "{error}");
    }

    #[test]
    fn steps_that_pass_are_no_error() {
        let mut steps = Steps::start();
        steps.run("only", || Ok(()));
        steps.finish().expect("it passed");
    }
}
