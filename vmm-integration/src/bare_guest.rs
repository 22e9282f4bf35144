// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bare guest, whichever VMM runs it: its image, and what it prints.
//!
//! `guest-driver/bare` describes its command line and its lines.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use crate::fetch::build::bare_guest as image;

/// What the guest's lines begin with.
const PREFIX: &str = "bare: ";
/// The name of the last line of a guest that has found nothing wrong.
const DONE: &str = "done";
/// The name of the last line of one that has.
const FAILED: &str = "failed";

/// A line of the guest: a name and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is about, such as `verified`.
    pub name: String,
    /// All behind the name.
    pub text: String,
    values: BTreeMap<String, String>,
}

impl Line {
    /// Reads a line of the serial port; none if the guest did not print it.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end().split_once(PREFIX)?.1;
        let (name, text) = line.split_once(' ').unwrap_or((line, ""));
        let values = text.split(' ').filter_map(|word| word.split_once('='));
        let values = values.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Some(Self { name: name.to_owned(), text: text.to_owned(), values })
    }

    /// A value that is a number, hexadecimal behind `0x`.
    ///
    /// # Errors
    /// When the line has no such value.
    pub fn number(&self, name: &str) -> Result<u64> {
        let value = self.values.get(name);
        let value = value.with_context(|| format!("no {name} in `{} {}`", self.name, self.text))?;
        let number = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        number.with_context(|| format!("{name} is {value:?}: expected a number"))
    }
}

/// The guest's serial port.
pub struct Console {
    port: Box<dyn Write + Send>,
    lines: Receiver<Line>,
    seen: Vec<Line>,
}

impl Console {
    /// Over the host's end of the serial port.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new(port: UnixStream) -> Result<Self> {
        let reader = port.try_clone().context("copying the console's socket")?;
        Ok(Self::over(reader, port))
    }

    /// Over the host's ends of what the guest prints and what it is told.
    pub fn over(printed: impl Read + Send + 'static, told: impl Write + Send + 'static) -> Self {
        let reader = BufReader::new(printed);
        let (sender, lines) = channel();
        thread::spawn(move || {
            // A VMM that ends closes the port.
            let lines = reader.lines().map_while(Result::ok);
            lines.filter_map(|line| Line::parse(&line)).try_for_each(|line| sender.send(line))
        });
        Self { port: Box::new(told), lines, seen: Vec::new() }
    }

    /// Waits for the next line of this name.
    ///
    /// # Errors
    /// When the guest fails or ends, or prints no such line in time.
    pub fn wait_for(&mut self, name: &str, patience: Duration) -> Result<Line> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no line `{name}` within {patience:?}; {}", self.tail())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended without a line `{name}`; {}", self.tail())
                }
            };
            self.seen.push(line.clone());
            if line.name == name {
                return Ok(line);
            }
            ensure!(line.name != FAILED, "the guest failed: {}", line.text);
        }
    }

    /// Waits until the guest is done and returns all its lines.
    ///
    /// # Errors
    /// When it fails, or is not done in time.
    pub fn wait_done(mut self, patience: Duration) -> Result<Vec<Line>> {
        self.wait_for(DONE, patience)?;
        Ok(self.seen)
    }

    /// Ends the step `serve` of the guest.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn end_serving(&mut self) -> Result<()> {
        self.port.write_all(b"q").context("writing to the guest's serial port")
    }

    fn tail(&self) -> String {
        match self.seen.last() {
            Some(line) => format!("the last one is `{} {}`", line.name, line.text),
            None => "it printed none".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(text.as_bytes()).unwrap();
        Console::new(ours).unwrap()
    }

    #[test]
    fn line_has_a_name_and_values() {
        let line =
            Line::parse("\x1b[2Jbare: verified freed_pages=512 at=0x1f zero_pages=y\r").unwrap();
        assert_eq!((line.name.as_str(), line.number("freed_pages").unwrap()), ("verified", 512));
        assert_eq!(line.number("at").unwrap(), 0x1f);
        let error = format!("{:#}", line.number("zero_pages").unwrap_err());
        assert!(error.starts_with("zero_pages is \"y\": expected a number"), "{error}");
        assert!(line.number("nothing").is_err());
        assert_eq!(Line::parse("SeaBIOS"), None);
    }

    #[test]
    fn console_tells_failure_from_end() {
        let soon = Duration::from_secs(10);
        let lines = console("bare: up\nSeaBIOS\nbare: done\n").wait_done(soon).unwrap();
        assert_eq!(lines.len(), 2);
        let error = |text| console(text).wait_done(soon).unwrap_err().to_string();
        assert_eq!(error("bare: failed for a reason\n"), "the guest failed: for a reason");
        let gone = "the guest ended without a line `done`; the last one is `up `";
        assert_eq!(error("bare: up\n"), gone);
        let (_port, ours) = UnixStream::pair().unwrap();
        let error = Console::new(ours).unwrap().wait_done(Duration::ZERO).unwrap_err().to_string();
        assert_eq!(error, "no line `done` within 0ns; it printed none");
    }
}
