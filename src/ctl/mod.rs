// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-device-balloon ctl`: the operator's client.

mod show;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::control::client::{Client, ClientError};
use crate::control::views::StatisticsView;
use crate::logging::{LogLevel, error_chain};
use crate::values::{parse_interval, parse_size};

/// The daemon gave no answer, or none that can be understood, or the guest gave none.
const NO_ANSWER: u8 = 3;

/// The daemon has kept what was asked for, and nothing happens until the guest's driver runs.
const PENDING: u8 = 4;

/// How often it is looked whether the guest has told its statistics.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Options of `ctl`.
#[derive(Clone, Debug, Args)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
The exit status is 0 if it was done, 1 if the daemon refused, 2 if the command line is wrong, and 3
if no daemon answers, or no guest that was asked through it. It is 4 if a target is kept and no driver
runs in the guest: nothing happens until one does."
)]
pub struct CtlArgs {
    /// The daemon's --control-socket.
    #[arg(long, value_name = "PATH")]
    control_socket: PathBuf,

    /// Prints what the daemon answers as it is, which is JSON except for metrics.
    #[arg(long, global = true)]
    json: bool,

    /// How long to wait for an answer, in seconds, from 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, global = true,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,

    #[command(subcommand)]
    command: Command,
}

/// What to ask the daemon for.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Shows what the daemon is doing.
    Status,
    /// Shows how the guest uses its memory, as it told last.
    Statistics {
        /// Asks the guest first, and waits for what it tells.
        #[arg(long)]
        refresh: bool,
    },
    /// Sets how often the guest is asked for its statistics.
    StatisticsInterval {
        /// Seconds between two polls; 0 for never.
        #[arg(value_parser = parse_interval)]
        seconds: u32,
    },
    /// Sets how much memory the balloon takes from the guest, or leaves to it.
    ///
    /// QEMU's `balloon`, libvirt's `setmem` and Proxmox take the number that is left to the guest:
    /// that is --leave here. A target that leaves less than a reserve is refused: an eighth of the
    /// guest's memory and at least 256 MiB, or half of a guest with less than 512 MiB.
    Target(Target),
    /// Gives nothing back until it is resumed; the guest's reports are answered.
    Pause,
    /// Gives memory back again.
    Resume,
    /// Keeps memory of the guest, whatever it reports, for a device or a snapshot that reads it.
    Pin(Memory),
    /// Takes one pin of exactly this memory back.
    Unpin(Memory),
    /// Has the guest hint which of its pages are free.
    ///
    /// The daemon's help says what that risks (--free-page-hints).
    Hinting {
        /// Whether a round begins or ends.
        action: HintingAction,
    },
    /// Shows what was done since the last reset.
    Counters,
    /// Counts from 0 again. Metrics go on.
    ResetCounters,
    /// Sets how much the daemon logs.
    LogLevel {
        /// The least important messages to log.
        level: LogLevel,
    },
    /// Prints the metrics as Prometheus reads them.
    Metrics,
}

#[derive(Clone, Copy, Debug, Args)]
#[command(group(clap::ArgGroup::new("reading").args(["size", "take", "leave"]).required(true)))]
struct Target {
    /// Same as --take SIZE.
    #[arg(value_parser = parse_size)]
    size: Option<u64>,

    /// Bytes that the guest goes without, a multiple of 4K, or with a suffix: K, M, G or T for
    /// powers of 1024. 0 empties the balloon.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    take: Option<u64>,

    /// Bytes that the guest keeps, in the same form; needs a connected VMM.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    leave: Option<u64>,

    /// Leaves the guest less than the reserve. Risks the guest's processes, or all of it.
    #[arg(long)]
    force: bool,
}

impl Target {
    fn body(self) -> serde_json::Value {
        match (self.size.or(self.take), self.leave) {
            (Some(bytes), _) => json!({"bytes": bytes, "force": self.force}),
            (None, leave) => json!({"leave_bytes": leave, "force": self.force}),
        }
    }
}

#[derive(Clone, Copy, Debug, Args)]
struct Memory {
    /// Guest physical address, decimal or hexadecimal with 0x.
    #[arg(value_parser = parse_address)]
    address: u64,
    /// Bytes, or with a suffix: K, M, G or T for powers of 1024.
    #[arg(value_parser = parse_size)]
    size: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HintingAction {
    Start,
    Stop,
}

fn parse_address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        // `from_str_radix` would take a sign.
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => Some(text)
            .filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|text| text.parse().ok()),
    };
    number.ok_or_else(|| {
        format!("expected a guest physical address such as 4294967296 or 0x100000000, not {text:?}")
    })
}

impl CtlArgs {
    /// Asks the daemon and prints what it says; returns the exit status.
    pub fn run(&self) -> ExitCode {
        let client = Client::new(&self.control_socket, self.timeout());
        match self.ask(&client) {
            Ok((text, status)) => match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => status,
                // Who does not want to read on is no error, and cannot be told of others.
                Err(_) => ExitCode::FAILURE,
            },
            Err(error) => {
                let text = format!("vhost-device-balloon ctl: {}", error_chain(&error));
                let _ = writeln!(io::stderr(), "{text}");
                if error.is_refusal() { ExitCode::FAILURE } else { ExitCode::from(NO_ANSWER) }
            }
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    /// What to print, and the exit status.
    fn ask(&self, client: &Client) -> Result<(String, ExitCode), ClientError> {
        let answer = self.answer(client)?;
        let unreadable = |error: serde_json::Error| ClientError::NotAnAnswer(error.to_string());
        let status = match self.command {
            Command::Target(_) if show::is_pending(&answer).map_err(unreadable)? => {
                ExitCode::from(PENDING)
            }
            _ => ExitCode::SUCCESS,
        };
        if self.json {
            return Ok((answer, status));
        }
        let shown = match self.command {
            Command::Status => show::status(&answer),
            Command::Statistics { .. } => show::statistics(&answer),
            Command::Counters | Command::ResetCounters => show::counters(&answer),
            Command::Pause | Command::Resume => show::paused(&answer),
            Command::Hinting { .. } => show::hinting(&answer),
            Command::Target(_) => show::target(&answer),
            Command::Metrics => Ok(answer),
            // What was asked for is done, and it is known what that was.
            _ => Ok(String::new()),
        };
        Ok((shown.map_err(unreadable)?, status))
    }

    /// What the daemon answers.
    fn answer(&self, client: &Client) -> Result<String, ClientError> {
        let get = |path| client.ask("GET", path, None);
        let post = |path| client.ask("POST", path, None);
        let put = |path, body| client.ask("PUT", path, Some(&body));
        let memory = |Memory { address, size }| json!({"address": address, "bytes": size});
        match self.command {
            Command::Status => get("/v1/status"),
            Command::Statistics { refresh: false } => get("/v1/statistics"),
            Command::Statistics { refresh: true } => self.refreshed(client),
            Command::StatisticsInterval { seconds } => {
                put("/v1/statistics-interval", json!({"seconds": seconds}))
            }
            Command::Target(target) => put("/v1/target", target.body()),
            Command::Pause => post("/v1/pause"),
            Command::Resume => post("/v1/resume"),
            Command::Pin(range) => put("/v1/pins", memory(range)),
            Command::Unpin(range) => client.ask("DELETE", "/v1/pins", Some(&memory(range))),
            Command::Hinting { action: HintingAction::Start } => post("/v1/hinting/start"),
            Command::Hinting { action: HintingAction::Stop } => post("/v1/hinting/stop"),
            Command::Counters => get("/v1/counters"),
            Command::ResetCounters => post("/v1/counters/reset"),
            Command::LogLevel { level } => put("/v1/log-level", json!({"level": level})),
            Command::Metrics => get("/metrics"),
        }
    }

    /// Has the guest asked, and waits for what it tells.
    fn refreshed(&self, client: &Client) -> Result<String, ClientError> {
        let asked = Instant::now();
        client.ask("POST", "/v1/statistics/refresh", None)?;
        while asked.elapsed() < self.timeout() {
            let answer = client.ask("GET", "/v1/statistics", None)?;
            let elapsed = asked.elapsed().as_secs_f64();
            let view: StatisticsView = serde_json::from_str(&answer)
                .map_err(|error| ClientError::NotAnAnswer(error.to_string()))?;
            if view.sample.is_some_and(|sample| sample.age_seconds < elapsed) {
                return Ok(answer);
            }
            thread::sleep(LOOK_EVERY);
        }
        Err(ClientError::Silent(self.timeout()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_decimal_or_hexadecimal() {
        assert_eq!(parse_address("4096"), Ok(4096));
        assert_eq!(parse_address("0x100000000"), Ok(1 << 32));
        assert_eq!(parse_address("0xffffffffffffffff"), Ok(u64::MAX));
        for bad in ["", "0x", "0x+1", "+1", "-1", "1K", "ff", "0X10", "0x10000000000000000"] {
            assert!(parse_address(bad).unwrap_err().contains("expected"), "{bad}");
        }
    }
}
