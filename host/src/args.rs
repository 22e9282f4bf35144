// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::exit;
use crate::hostd::Options;
use crate::sockets::{self, DEFAULT_DIR};

/// Where hostd listens by default.
const DEFAULT_SOCKET: &str = "/run/vhost-device-balloon/hostd.sock";

/// Watches and steers all balloon daemons of this host.
///
/// Each VM has a daemon of its own (vhost-device-balloon). This program finds their control sockets
/// and asks them as `vhost-device-balloon ctl` does. A daemon never needs it: without this program
/// every VM keeps the memory that its own target leaves it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = after(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run as the one process of this host that knows all daemons.
    ///
    /// Serves the metrics of all daemons on one page. Sleeps until a client asks, a socket comes or
    /// goes, or a signal arrives.
    Hostd(HostdArgs),
    /// Show what hostd knows of the host and its guests.
    Status(StatusArgs),
    /// Show all guests of this host on one screen, and steer them.
    ///
    /// A guest is asked for its statistics at each look, unless --passive. Keys set a target, pause and
    /// reclaim: press ? for all of them. A reclaim that is in progress lets go when the program ends.
    Top(TopArgs),
}

/// Options of `hostd`.
#[derive(Clone, Debug, Args)]
pub(crate) struct HostdArgs {
    #[command(flatten)]
    pub(crate) places: Places,

    /// Unix socket to listen on: HTTP with GET /v1/host (JSON) and GET /metrics.
    ///
    /// Only the user of hostd may connect (mode 0600). The socket of a dead process is replaced, and the
    /// file is removed when hostd shuts down.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,

    /// Loopback address and port for the metrics, such as `127.0.0.1:9143` or `[::1]:9143`.
    ///
    /// Serves only `GET /metrics`, to every user of this machine. An address that other machines can
    /// reach is refused. Port 0 selects a free port, and the log names it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics_address: Option<SocketAddr>,

    /// Policy to carry out, in TOML. Without one hostd sets no target.
    ///
    /// While the host has memory to spare, no guest is asked for anything. Otherwise the policy takes
    /// from guests what they do not use, by leases: if hostd is killed, each guest goes back to its own target
    /// within three periods. The file is read again when it changes and at SIGHUP; one that is refused
    /// changes nothing. Only one hostd may steer the daemons of a directory.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) policy: Option<PathBuf>,

    /// Decide and show, and send nothing; also beside another hostd.
    #[arg(long, requires = "policy")]
    pub(crate) dry_run: bool,

    /// Control group (cgroup v2) whose limit and pressure count as those of the host.
    ///
    /// For VMs that share a slice with a limit, such as /sys/fs/cgroup/machine.slice.
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) cgroup: Option<PathBuf>,
}

impl From<HostdArgs> for Options {
    fn from(args: HostdArgs) -> Self {
        let HostdArgs { places, socket, metrics_address, policy, dry_run, cgroup } = args;
        Self { dirs: places.dirs, socket, metrics_address, policy, dry_run, cgroup }
    }
}

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    /// The --socket of hostd.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,

    /// Print the answer of hostd unchanged, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `top`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) places: Places,

    /// Show the daemon with this control socket alone.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) control_socket: Option<PathBuf>,

    /// Seconds between two looks, from 0.2 to 3600.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_seconds)]
    pub(crate) interval: Duration,

    /// Look twice, an interval apart, print a table, and exit.
    #[arg(long)]
    pub(crate) once: bool,

    /// The same, as JSON: the host, and an array of guests.
    #[arg(long)]
    pub(crate) json: bool,

    /// Show the statistics that the daemons have; ask no guest for new ones.
    #[arg(long)]
    pub(crate) passive: bool,

    /// Control socket of hostd.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    #[arg(default_value = DEFAULT_SOCKET)]
    pub(crate) hostd: PathBuf,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.2..=3600.0).contains(seconds));
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("expected seconds from 0.2 to 3600, got {text:?}"))
}

impl TopArgs {
    /// The control sockets that there are now.
    pub(crate) fn sockets(&self) -> io::Result<BTreeSet<PathBuf>> {
        match &self.control_socket {
            Some(socket) => Ok([socket.clone()].into()),
            None => sockets::find(&self.places.dirs),
        }
    }
}

/// Where the daemons are.
#[derive(Clone, Debug, Args)]
pub(crate) struct Places {
    /// Directory with control sockets, files named VM.ctl. May be given more than once.
    ///
    /// Sockets that come and go are noticed at once, and so is a directory that does not exist yet.
    /// A component `*` of the path stands for any one name, as in /run/*/balloon.
    #[arg(long = "sockets", value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    #[arg(default_value = DEFAULT_DIR)]
    pub(crate) dirs: Vec<PathBuf>,
}

fn after() -> String {
    format!("Exit status:\n{}", exit::list())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
