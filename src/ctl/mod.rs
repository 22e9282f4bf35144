// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vhost-device-balloon ctl`: the operator's client.

mod doctor;
mod help;
mod interrupt;
mod reclaim;
mod show;
pub(crate) mod top;
mod upgrade;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use serde_json::json;

use crate::cli::exit::CtlExit;
use crate::control::client::{Client, ClientError};
use crate::control::reclaim::DEFAULT_TIMEOUT;
use crate::control::views::StatisticsView;
use crate::logging::{LogLevel, error_chain};
use crate::values::{parse_interval, parse_lease, parse_size};

/// How often to look whether the guest has sent its statistics.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Options and commands of `ctl`.
#[derive(Clone, Debug, Args)]
#[command(disable_help_subcommand = true, after_help = help::after("ctl"))]
pub(crate) struct CtlArgs {
    /// The daemon's --control-socket.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(env = "BALLOON_CONTROL", hide_env_values = true)]
    control_socket: PathBuf,

    /// Print the daemon's answer unchanged: JSON, except for metrics.
    #[arg(long, global = true)]
    json: bool,

    /// Seconds to wait for an answer, or that a reclaim may squeeze, from 1 to 3600 [default: 5; 60
    /// for reclaim and park].
    #[arg(long, value_name = "SECONDS", global = true,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: Option<u32>,

    #[command(subcommand)]
    command: Command,
}

/// Requests to the daemon.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show the state of the daemon, the VMM and the guest driver.
    #[command(after_help = help::after("status"))]
    Status,
    /// Say what is wrong with this daemon, its VM and the host, and what to do.
    ///
    /// Counts since the last reset of the counters are looked at: reset them after a remedy.
    #[command(after_help = help::after("doctor"))]
    Doctor,
    /// Show the last memory statistics of the guest.
    #[command(after_help = help::after("statistics"))]
    Statistics {
        /// Ask the guest first, and wait for its answer.
        #[arg(long)]
        refresh: bool,
    },
    /// Show or set the interval between two polls of the guest's statistics.
    #[command(after_help = help::after("statistics-interval"))]
    StatisticsInterval {
        /// Seconds between two polls; 0 for never. Shows the interval if there is none.
        #[arg(value_parser = parse_interval)]
        seconds: Option<u32>,
    },
    /// Show or set how much memory the balloon takes from the guest, or leaves to it.
    ///
    /// Without a size it shows the target.
    ///
    /// QEMU's `balloon`, libvirt's `setmem` and Proxmox take the memory that is left to the guest:
    /// use --leave for that number. A target must leave the guest a reserve: an eighth of its memory
    /// and at least 256 MiB, or half of a guest with less than 512 MiB.
    #[command(after_help = help::after("target"))]
    Target(Target),
    /// Squeeze the memory that the guest has available out of it now, and let go.
    ///
    /// The balloon takes what the guest's statistics say is available, less what --keep leaves, and
    /// returns to its target as soon as the guest has given it. Every phase ends by itself: at guest
    /// pressure, after --timeout, and when this command is interrupted or killed. The guest drops
    /// clean page cache for it and reads it from disk again later; the daemon asks for no more than
    /// that. Requires a daemon with --statistics.
    #[command(after_help = help::after("reclaim"))]
    Reclaim(Reclaim),
    /// Reclaim, then pause discarding until `unpark`: before the VM is stopped or saved.
    ///
    /// When the command returns, the guest holds as little memory as `reclaim` leaves it, the balloon
    /// is back at its target, and no discard is in progress: stop the VM, save it, or leave it
    /// stopped. An interrupted `park` parks nothing.
    #[command(after_help = help::after("park"))]
    Park(Reclaim),
    /// Resume discarding after a `park`.
    #[command(after_help = help::after("unpark"))]
    Unpark,
    /// Stop discarding until `resume`; the guest's reports are still answered.
    #[command(after_help = help::after("pause"))]
    Pause,
    /// Resume discarding.
    #[command(after_help = help::after("resume"))]
    Resume,
    /// Never discard this guest memory, for a device or a snapshot that reads it.
    #[command(after_help = help::after("pin"))]
    Pin(Memory),
    /// Remove one pin of exactly this memory.
    #[command(after_help = help::after("unpin"))]
    Unpin(Memory),
    /// Show the memory that is pinned.
    #[command(after_help = help::after("pins"))]
    Pins,
    /// Start or stop a round of free page hinting. Risks guest data.
    ///
    /// The daemon's help describes the risk (--free-page-hints).
    #[command(after_help = help::after("hinting"))]
    Hinting {
        /// Whether to start or to stop a round.
        action: HintingAction,
    },
    /// Have the program that is at the daemon's path by now go on with the VM.
    ///
    /// For after an update. The VM, its balloon, the pause and the pins stay as they are. The new program
    /// is asked first whether it could go on from the state of this one, and nothing changes if not.
    /// One that does not serve within five seconds is replaced by the one before. Requires a daemon
    /// with --keeper, or one that systemd starts again.
    #[command(after_help = help::after("upgrade"))]
    Upgrade,
    /// Show the counters since the last reset.
    #[command(after_help = help::after("counters"))]
    Counters,
    /// Reset the counters to 0; metrics continue.
    #[command(after_help = help::after("reset-counters"))]
    ResetCounters,
    /// Show or set the least important level that the daemon logs.
    #[command(after_help = help::after("log-level"))]
    LogLevel {
        /// The least important level to log. Shows the level if there is none.
        level: Option<LogLevel>,
    },
    /// Print the metrics in the text format of Prometheus.
    #[command(after_help = help::after("metrics"))]
    Metrics,
    /// Show all guests of this host on one screen, and steer them.
    ///
    /// Does not need --control-socket; with it, shows that daemon alone. The program
    /// vhost-device-balloon-host does it: ctl top --help lists the options.
    #[command(after_help = help::after("top"), disable_help_flag = true)]
    Top {
        /// Options of vhost-device-balloon-host top.
        #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Clone, Copy, Debug, Args)]
#[command(group(clap::ArgGroup::new("reading").args(["size", "take", "leave"])))]
struct Target {
    /// Same as --take SIZE.
    #[arg(value_parser = parse_size)]
    size: Option<u64>,

    /// Memory that the guest loses: bytes, a multiple of 4K, or with a suffix K, M, G or T for powers
    /// of 1024. 0 empties the balloon.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    take: Option<u64>,

    /// Memory that the guest keeps, in the same form; requires a connected VMM.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    leave: Option<u64>,

    /// Allow less than the reserve. Risks the guest's processes, or the guest.
    #[arg(long, requires = "reading")]
    force: bool,

    /// Set the target for this time only, such as 30s or 5m, at most a day: then the guest goes back to its
    /// base target, the last one set without a lease. Set it again in time to renew it.
    #[arg(long, value_name = "TIME", requires = "reading", value_parser = parse_lease)]
    lease: Option<u32>,

    /// End the lease now.
    #[arg(long, conflicts_with_all = ["reading", "lease", "force"])]
    end_lease: bool,
}

impl Target {
    /// The target to set; none to show it.
    fn body(self) -> Option<serde_json::Value> {
        let mut body = match (self.size.or(self.take), self.leave) {
            (Some(bytes), _) => json!({"bytes": bytes, "force": self.force}),
            (None, Some(leave)) => json!({"leave_bytes": leave, "force": self.force}),
            (None, None) => return None,
        };
        if let Some(seconds) = self.lease {
            body["lease_seconds"] = seconds.into();
        }
        Some(body)
    }
}

#[derive(Clone, Copy, Debug, Args)]
struct Reclaim {
    /// Available memory that the guest keeps, in bytes or with a suffix K, M, G or T [default: an
    /// eighth of its memory and at least 256 MiB, or half of a guest with less than 512 MiB].
    ///
    /// Less than half of it available ends the reclaim. 0 leaves the guest nothing to start a
    /// process with until the balloon is let go.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    keep: Option<u64>,
}

#[derive(Clone, Copy, Debug, Args)]
struct Memory {
    /// Guest physical address, decimal, or hexadecimal with 0x.
    #[arg(value_parser = parse_address)]
    address: u64,
    /// Bytes, or with a suffix K, M, G or T for powers of 1024.
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
        format!("expected a guest physical address such as 4294967296 or 0x100000000, got {text:?}")
    })
}

impl CtlArgs {
    /// Asks the daemon and prints its answer; returns the exit status.
    pub(crate) fn run(&self) -> ExitCode {
        if let Command::Top { args } = &self.command {
            return top::of_one(&self.control_socket, self.json, args);
        }
        let client = Client::new(&self.control_socket, self.timeout());
        match self.ask(&client) {
            Ok((text, status)) => match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => status.into(),
                // A reader that has closed the pipe is no error to report.
                Err(_) => CtlExit::Refused.into(),
            },
            Err(error) => {
                let _ = writeln!(io::stderr(), "vhost-device-balloon ctl: {}", error_chain(&error));
                let refused = error.is_refusal();
                if refused { CtlExit::Refused } else { CtlExit::NoAnswer }.into()
            }
        }
    }

    fn timeout(&self) -> Duration {
        match self.command {
            // It ends by itself, with the time that the guest has to confirm it.
            Command::Reclaim(_) | Command::Park(_) => {
                Duration::from_secs(self.reclaim_seconds().into()) + reclaim::ENDS_WITHIN
            }
            _ => Duration::from_secs(self.timeout.unwrap_or(5).into()),
        }
    }

    fn reclaim_seconds(&self) -> u32 {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// Returns the text to print and the exit status.
    fn ask(&self, client: &Client) -> Result<(String, CtlExit), ClientError> {
        if let Command::Doctor = self.command {
            return self.diagnose(client);
        }
        let answer = self.answer(client)?;
        let unreadable = |error: serde_json::Error| ClientError::NotAnAnswer(error.to_string());
        let status = match self.command {
            Command::Target(target)
                if target.body().is_some() && show::is_pending(&answer).map_err(unreadable)? =>
            {
                CtlExit::Pending
            }
            Command::Upgrade if !upgrade::is_done(&answer).map_err(unreadable)? => CtlExit::Refused,
            Command::Reclaim(_) | Command::Park(_) => {
                reclaim::status(&answer).map_err(unreadable)?
            }
            _ => CtlExit::Done,
        };
        if self.json {
            return Ok((answer, status));
        }
        let shown = match self.command {
            Command::Status => show::status(&answer),
            Command::Statistics { .. } => show::statistics(&answer),
            Command::Counters | Command::ResetCounters => show::counters(&answer),
            Command::Reclaim(_) | Command::Park(_) => reclaim::text(&answer),
            Command::Pause | Command::Resume | Command::Unpark => show::paused(&answer),
            Command::Hinting { .. } => show::hinting(&answer),
            Command::Target(_) => show::target(&answer),
            Command::Pins => show::pins(&answer),
            Command::StatisticsInterval { seconds: None } => show::interval(&answer),
            Command::LogLevel { level: None } => show::log_level(&answer),
            Command::Upgrade => upgrade::text(&answer),
            Command::Metrics => Ok(answer),
            // The request is done, and the operator knows what it was.
            _ => Ok(String::new()),
        };
        Ok((shown.map_err(unreadable)?, status))
    }

    fn squeeze(
        &self,
        client: &Client,
        path: &str,
        reclaim: Reclaim,
    ) -> Result<String, ClientError> {
        let interrupts = Client::new(&self.control_socket, Duration::from_secs(5));
        if let Err(error) = interrupt::lets_go(interrupts) {
            let _ = writeln!(
                io::stderr(),
                "cannot take signals, ctrl-C ends without a report: {error}"
            );
        }
        client.ask("POST", path, self.body(reclaim).as_ref())
    }

    /// Returns the daemon's answer.
    fn answer(&self, client: &Client) -> Result<String, ClientError> {
        let get = |path| client.ask("GET", path, None);
        let post = |path| client.ask("POST", path, None);
        let put = |path, body| client.ask("PUT", path, Some(&body));
        let show_or_set = |path, body: Option<_>| match body {
            Some(body) => put(path, body),
            None => get(path),
        };
        let memory = |Memory { address, size }| json!({"address": address, "bytes": size});
        match self.command {
            Command::Status | Command::Doctor => get("/v1/status"),
            Command::Statistics { refresh: false } => get("/v1/statistics"),
            Command::Statistics { refresh: true } => self.refreshed(client),
            Command::StatisticsInterval { seconds } => {
                let body = seconds.map(|seconds| json!({"seconds": seconds}));
                show_or_set("/v1/statistics-interval", body)
            }
            Command::Target(Target { end_lease: true, .. }) => {
                client.ask("DELETE", "/v1/target", None)
            }
            Command::Target(target) => show_or_set("/v1/target", target.body()),
            Command::Reclaim(reclaim) => self.squeeze(client, "/v1/reclaim", reclaim),
            Command::Park(reclaim) => self.squeeze(client, "/v1/park", reclaim),
            Command::Unpark => post("/v1/unpark"),
            Command::Pause => post("/v1/pause"),
            Command::Resume => post("/v1/resume"),
            Command::Pin(range) => put("/v1/pins", memory(range)),
            Command::Unpin(range) => client.ask("DELETE", "/v1/pins", Some(&memory(range))),
            Command::Pins => get("/v1/pins"),
            Command::Hinting { action: HintingAction::Start } => post("/v1/hinting/start"),
            Command::Hinting { action: HintingAction::Stop } => post("/v1/hinting/stop"),
            Command::Upgrade => upgrade::answer(client, self.timeout()),
            Command::Counters => get("/v1/counters"),
            Command::ResetCounters => post("/v1/counters/reset"),
            Command::LogLevel { level } => {
                show_or_set("/v1/log-level", level.map(|level| json!({"level": level})))
            }
            // Done before anything is asked.
            Command::Top { .. } => Ok(String::new()),
            Command::Metrics => get("/metrics"),
        }
    }

    fn body(&self, reclaim: Reclaim) -> Option<serde_json::Value> {
        let mut body = json!({"timeout_seconds": self.reclaim_seconds()});
        if let Some(keep) = reclaim.keep {
            body["keep_bytes"] = keep.into();
        }
        Some(body)
    }

    /// Looks for what is wrong; the exit status says whether something is.
    fn diagnose(&self, client: &Client) -> Result<(String, CtlExit), ClientError> {
        let unreadable = |error: serde_json::Error| ClientError::NotAnAnswer(error.to_string());
        let status = serde_json::from_str(&self.answer(client)?).map_err(unreadable)?;
        let counters = client.ask("GET", "/v1/counters", None)?;
        let counters = serde_json::from_str(&counters).map_err(unreadable)?;
        let found = doctor::findings(&status, &counters, &doctor::host());
        let is_wrong = found.iter().any(|finding| finding.wrong);
        let text = match self.json {
            true => serde_json::to_string(&found).map_err(unreadable)? + "\n",
            false => doctor::text(&found),
        };
        Ok((text, if is_wrong { CtlExit::Refused } else { CtlExit::Done }))
    }

    /// Asks the guest for statistics, and waits until they arrive.
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
