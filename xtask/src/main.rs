//! `cargo xtask`: the developer's commands. See `cargo xtask --help`.

mod cargo;
mod demo;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The developer's commands of vhost-device-balloon.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows a Linux guest giving its free memory back through the daemon.
    ///
    /// Sets up what is missing, boots a guest, lets it fill and free memory several times, draws
    /// the guest's use beside the host's, and ends with a table and a picture in target/demo.
    Demo(demo::Options),
    /// Runs every check and every test, those with a real guest included.
    Test,
    /// Measures, and prints ratios to a yardstick measured in the same run.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Fetches and unpacks what a guest needs into target/guest, and builds its init program.
    Setup,
}

#[derive(Subcommand)]
enum Bench {
    /// The daemon: round trip of a queue, calls a chain, idle cost, time to start.
    Device,
}

fn main() -> ExitCode {
    let done = match Xtask::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test => test::all(),
        Command::Bench { what: Bench::Device } => {
            cargo::run(&mut cargo::cargo(&["bench", "--locked", "--bench", "device"]))
        }
        Command::Setup => setup::guest().map(drop),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
