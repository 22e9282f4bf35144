// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lines of a result: `step=NAME KEY=VALUE ...`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// The steps of a window, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    steps: Vec<Step>,
    text: String,
}

/// The state at a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step(BTreeMap<String, String>);

impl Steps {
    /// Reads a result; its last line says that no error stopped it.
    ///
    /// # Errors
    /// If the result is not whole.
    pub fn parse(text: &str) -> Result<Self> {
        let mut steps = Vec::new();
        let mut ended = false;
        for line in text.lines() {
            ensure!(!ended, "a line behind the end: {line:?}");
            let words = line.split_whitespace().map(|word| {
                let (key, value) = word.split_once('=').with_context(|| format!("{word:?}"))?;
                Ok((key.to_owned(), value.to_owned()))
            });
            let step = Step(words.collect::<Result<_>>().with_context(|| format!("in {line:?}"))?);
            if step.0.contains_key("step") {
                steps.push(step);
                continue;
            }
            let result: i64 = step.number("result")?;
            ensure!(result == 0, "the window ended with error {result}:\n{text}");
            ended = true;
        }
        ensure!(ended, "the result has no end:\n{text}");
        Ok(Self { steps, text: text.to_owned() })
    }

    /// The state at a step.
    ///
    /// # Errors
    /// If there is no such step.
    pub fn at(&self, name: &str) -> Result<&Step> {
        let found = self.steps.iter().find(|step| step.0.get("step").is_some_and(|at| at == name));
        found.with_context(|| format!("no step {name} in\n{}", self.text))
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end())
    }
}

impl Step {
    /// A value.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn word(&self, key: &str) -> Result<&str> {
        let found = self.0.get(key).map(String::as_str);
        found.with_context(|| format!("no {key} in {:?}", self.0))
    }

    /// A value that is a number.
    ///
    /// # Errors
    /// If there is none of that name, or it is no number.
    pub fn number<T: FromStr>(&self, key: &str) -> Result<T> {
        let word = self.word(key)?;
        word.parse().ok().with_context(|| format!("{key} is {word:?}, which is no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_without_its_end_is_refused() {
        let whole = "step=a free=1 worker=idle\nstep=b order=-1\nresult=0\n";
        let steps = Steps::parse(whole).unwrap();
        assert_eq!(steps.at("a").unwrap().word("worker").unwrap(), "idle");
        assert_eq!(steps.at("b").unwrap().number::<i32>("order").unwrap(), -1);
        assert!(steps.at("c").is_err() && steps.at("a").unwrap().number::<u32>("worker").is_err());
        for wrong in
            ["", "step=a\n", "step=a\nresult=-12\n", "result=0\nstep=a\n", "step\nresult=0"]
        {
            assert!(Steps::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
