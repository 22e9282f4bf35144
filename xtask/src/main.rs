// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask`: the developer's commands. See `cargo xtask --help`.

mod against;
mod audit;
mod book;
mod capability;
mod cargo;
mod demo;
mod dist;
mod files;
mod fuzz;
#[cfg(test)]
mod house;
mod kernel;
mod lab;
mod mutants;
mod pictures;
mod qemu;
mod reference;
mod setup;
mod steps;
mod test;
mod tools;
mod vmms;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmm_integration::fetch::browser::Browser;

/// The developer's commands of vhost-device-balloon.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows live how the host reclaims a guest's free memory through the daemon.
    ///
    /// Fetches missing packages, boots a Linux guest or starts the model of one, fills and frees
    /// memory several times, and draws the guest's use beside the host's. Prints a table and writes
    /// a page into target/demo.
    Demo(demo::Options),
    /// Runs every check and every test.
    ///
    /// A test that needs something of the machine, such as a Linux guest, root or huge pages, is
    /// ignored by `cargo test`. This command fetches the guests and a browser, probes the rest, and
    /// includes each test whose needs are met. The others are listed with the reason. With the
    /// environment variable CI set, a missing capability fails the run unless CI_WITHOUT names it.
    /// In the end it prints the seconds of each step.
    Test(test::Options),
    /// Measures. Without more it runs all experiments of the lab, in short, and writes the report
    /// into target/lab.
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// A long run, for figures to quote.
        #[arg(long)]
        full: bool,
        /// Goes on with a run that was interrupted.
        #[arg(long)]
        resume: bool,
        #[command(subcommand)]
        what: Option<Bench>,
    },
    /// Builds the lab with the daemon and runs it: `cargo xtask lab list` says what there is.
    #[command(disable_help_flag = true)]
    Lab {
        /// The lab's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Plants known faults in a copy of the sources, and says whether the checks notice each.
    ///
    /// A mutant is one edit of one source file, listed in mutants/ with the check that must notice it:
    /// the explorer, in configurations that stand without the edit, or a test. The exit status is 1 if
    /// one survives. The results of the last whole run are in docs/research/mutants.md.
    Mutants(mutants::Options),
    /// Feeds the daemon what no guest, VMM or client should send, and checks what it makes of that.
    ///
    /// Each target of fuzz/ runs the daemon's own code on inputs that libFuzzer makes up, starting from those
    /// in fuzz/corpus, and compares the result with an oracle. As many targets run at a time as there are
    /// processors. What was found is kept in target/fuzz/corpus and is where the next run goes on. The
    /// table says how many inputs were executed and how many edges of the program they reach. The exit
    /// status is 1 if an input fails: its file is named, and the command that repeats it.
    Fuzz(fuzz::Options),
    /// Runs random sequences of what guests, VMMs, operators, time and faults do, against a real daemon and
    /// a reference of it.
    ///
    /// After each step, all of the guest's memory, the answer and what is owed must be what the reference says.
    /// System calls fail on purpose: refused punches, interrupted waits, short reads and writes, full call
    /// descriptors, no descriptors. A sequence that fails is shrunk and printed with its seed; the exit
    /// status is 1. Prints how many steps and faults of each kind there were.
    Reference(reference::Options),
    /// Says which VMMs this machine has, and runs the checks of a guest's life on each.
    ///
    /// A check boots a guest in a VMM beside a daemon of its own: its memory is reported, inflated,
    /// added; the guest is paused, reset, saved, moved; the daemon or the VMM is killed. QEMU and
    /// user-mode Linux are fetched, alioth is built. Environment variables hold the paths of other
    /// binaries: CLOUD_HYPERVISOR (version 52 or later) and CROSVM. The table says which VMMs are
    /// missing. A cell is the time that the check took, "absent" if the VMM does not have what it
    /// takes, or "FAILED"; it is empty if the VMM does not boot the guest that the check needs.
    /// Reasons are below the table. The exit status is 1 if a check failed.
    Vmms(vmms::Options),
    /// Builds the project's modules for the guest's kernel and prints their paths; with --debug also a
    /// kernel that checks itself.
    ///
    /// Fetches the kernel's headers with the compiler that they ask for into target/guest, without
    /// installing anything. What was built is kept until a source changes.
    Kernel(kernel::Options),
    /// Builds QEMU with the project's own device, vhost-user-balloon, and prints the command that runs it.
    ///
    /// The source is Debian's (39 MB), the device that of vmm-integration/qemu-device. It is compiled in
    /// a Debian of its own below target/guest (450 MB), which needs root; nothing is installed. It takes some
    /// 4 minutes on two processors. An interrupted build goes on where it was; what was built is kept until
    /// the device changes. The tests of the device run where it was built.
    Qemu(qemu::Options),
    /// Builds packages of the daemon: a .deb and a .rpm in target/dist/packages.
    ///
    /// They hold the daemon as it is released, its man pages, shell completions, systemd units, AppArmor
    /// profile, descriptor file, licenses and a bill of materials (CycloneDX), which is beside them as well, with
    /// checksums. Needs dpkg-deb, gzip and sha256sum. The same sources and toolchain make the same files in any
    /// folder: SOURCE_DATE_EPOCH, or the last commit, is their date. Flags in RUSTFLAGS do not count.
    Dist(dist::Options),
    /// Checks all packages that anything here is built of against deny.toml: where they come from, their
    /// licenses, versions of one package beside each other, and known vulnerabilities.
    ///
    /// cargo-deny does it for each workspace; it is built into target/tools before the first time. It fetches
    /// RustSec's database of vulnerabilities with git. Without a network the command fails after all other
    /// checks, and says so.
    Audit(audit::Options),
    /// Makes the pictures of `ctl top` and of the board for Grafana in docs.
    ///
    /// Boots four Linux guests with a daemon each, and a hostd with a policy, has the guests use and free memory,
    /// presses keys in a terminal with `top`, and has a Prometheus scrape hostd. Writes top.svg, top-demo.svg
    /// and top-demo.cast from what the terminal showed, and board.svg from what Prometheus answers to each query
    /// of the board. Fails if a panel has no data. Takes some two minutes.
    Pictures(pictures::Options),
    /// Builds the pages of docs as a book in target/book.
    Book,
    /// Fetches and unpacks what a guest needs into target/guest, and builds its init program.
    Setup {
        /// Fetches a headless Chromium, for the test of the report, into target/browser instead,
        /// unless this machine has one.
        #[arg(long)]
        browser: bool,
        /// Pins the newest packages in vmm-integration/guest-packages.toml instead. The next set-up
        /// fetches them.
        #[arg(long, conflicts_with = "browser")]
        update_packages: bool,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// The daemon: round trip of a queue, calls a chain, idle cost, time to start.
    Device {
        /// Prints the figures as JSON.
        #[arg(long)]
        json: bool,
    },
    /// A host of many daemons, each with a frontend, and hostd beside them: memory, idle cost, time of a
    /// scrape, cost of a round of the policy. Takes some two minutes.
    Host {
        /// How many daemons.
        #[arg(long, default_value_t = 50)]
        daemons: u32,
        /// Prints the figures as JSON.
        #[arg(long)]
        json: bool,
    },
    /// The guest's model: allocations with reporting off and on, and memory given back from end to
    /// end.
    ///
    /// For memory out of the hugetlb pool root raises the pool while it measures.
    Guest {
        /// Every tracker with both ways to hold pages, not only the default and mainline's.
        #[arg(long)]
        all: bool,
        /// Prints the figures as JSON.
        #[arg(long)]
        json: bool,
        /// Compares the allocations with those of this revision, and prints the ratio new/old of
        /// each row with the least and the most of the rounds.
        ///
        /// Builds the revision in a git worktree below target/against, which is removed in the end,
        /// and lets the two programs take turns. Three rounds take some ten minutes. Run it once at
        /// a time.
        #[arg(long, value_name = "REVISION")]
        against: Option<String>,
        /// How often the two programs take turns at each row.
        #[arg(long, default_value_t = 3, requires = "against")]
        rounds: u32,
    },
    /// The guest's model: an allocation with each way to say where it may go, on one thread, with
    /// criterion. `cargo xtask lab bench placement` has updates and threads.
    Placement,
}

/// Runs a benchmark of the root package with those of its flags that are set.
fn bench(name: &str, flags: &[(&str, bool)]) -> anyhow::Result<()> {
    let mut command = cargo::cargo(&["bench", "--locked", "--bench", name, "--"]);
    command.args(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag));
    cargo::run(&mut command)
}

/// Runs the benchmark of the host's program.
fn bench_host(daemons: u32, json: bool) -> anyhow::Result<()> {
    // It looks for the daemon beside the host's program.
    cargo::release_daemon()?;
    let package =
        ["bench", "--locked", "--package", "vhost-device-balloon-host", "--bench", "host"];
    let mut command = cargo::cargo(&package);
    command.args(["--", "--daemons", &daemons.to_string()]);
    command.args(json.then_some("--json"));
    cargo::run(&mut command)
}

fn main() -> ExitCode {
    let done = match Xtask::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::all(&options),
        Command::Bench { what: Some(Bench::Device { json }), .. } => {
            bench("device", &[("--json", json)])
        }
        Command::Bench { what: Some(Bench::Host { daemons, json }), .. } => {
            bench_host(daemons, json)
        }
        Command::Bench { what: Some(Bench::Guest { all, json, against, rounds }), .. } => {
            match against {
                Some(revision) => {
                    against::run_against(&against::Options { revision, rounds, all, json })
                }
                None => bench("guest", &[("--all", all), ("--json", json)]),
            }
        }
        Command::Bench { what: Some(Bench::Placement), .. } => bench("placement", &[]),
        Command::Mutants(options) => mutants::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Reference(options) => reference::reference(&options),
        Command::Vmms(options) => vmms::run(&options),
        Command::Kernel(options) => kernel::run(&options),
        Command::Qemu(options) => qemu::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Audit(options) => audit::run(&options),
        Command::Pictures(options) => pictures::run(&options),
        Command::Book => book::build(),
        Command::Bench { what: None, full, resume } => lab::bench(full, resume).map(drop),
        Command::Lab { args } => lab::lab(&args).map(drop),
        Command::Setup { update_packages: true, .. } => setup::update_packages(),
        Command::Setup { browser: true, .. } => Browser::ensure().map(drop),
        Command::Setup { .. } => setup::guest().map(drop),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
