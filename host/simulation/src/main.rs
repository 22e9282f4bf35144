// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `balloon-simulation`: what a policy would save on hosts such as these, and what it would cost.

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balloon_policy::Rules;
use balloon_simulation::fleet::{Compared, compare, sized};
use balloon_simulation::guest::counted::Counted;
use balloon_simulation::guest::paged::Paged;
use balloon_simulation::host::HostConfig;
use balloon_simulation::report;
use balloon_simulation::trace::Events;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lets hosts of many guests live in virtual time, under a policy and without one.
///
/// The same guests run on hosts with as much memory as the guests have, on overcommitted hosts whose
/// guests report their free memory, and on the same with the policy. The policy is the code that
/// `vhost-device-balloon hostd` runs. The programs of the guests are made up: days, jobs, bursts, backups, and
/// a leak.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Number of hosts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hosts: u32,
    /// Number of guests of a host.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    guests: u32,
    /// Hours of virtual time, from midnight, when all guests boot at once.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=720))]
    hours: u32,
    /// Memory of the guests in percent of the host's; more than one makes a curve.
    #[arg(long, value_delimiter = ',', default_value = "150")]
    #[arg(value_parser = clap::value_parser!(u64).range(100..=1000))]
    overcommit: Vec<u64>,
    /// What guests are made of.
    #[arg(long, value_enum, default_value_t = Of::Counters)]
    of: Of,
    /// One guest in so many is silent, lies, or has a daemon that dies; 0 for none.
    #[arg(long, default_value_t = 0)]
    faulty: u64,
    /// One web guest in so many leaks memory in the afternoon; 0 for none.
    #[arg(long, default_value_t = 0)]
    leaks: u64,
    /// The policy's process is dead from 10:00 to 11:00.
    #[arg(long)]
    policy_dies: bool,
    /// The guests' drivers do not deflate before the OOM killer runs: daemons without --deflate-on-oom.
    #[arg(long)]
    no_deflate_on_oom: bool,
    /// Rules of the policy (TOML); by default the policy's own.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Everything that is random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draw VMs lost and signs of pressure by overcommit into this SVG file.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What guests are made of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Of {
    /// Counters: 2, 4, 8 or 16 GiB a guest.
    Counters,
    /// The model of Linux's page allocator with its reporter: 1 or 2 GiB a guest.
    Pages,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let rules = match &args.policy {
        None => Rules::default(),
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Rules::from_toml(&text).with_context(|| format!("in {}", path.display()))?
        }
    };
    ensure!(!rules.host.dry_run, "dry_run: a policy that sends nothing has nothing to simulate");
    let time = Duration::from_secs(u64::from(args.hours) * 3600);
    let hosts = usize::try_from(args.hosts)?;
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let total = u64::from(args.hosts) * (1 + 2 * args.overcommit.len() as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} hosts, {eta}")?;
    let progress = ProgressBar::with_draw_target(Some(total), target).with_style(style);
    let done = || progress.inc(1);
    let mut compared: Vec<Compared> = Vec::new();
    for overcommit_percent in &args.overcommit {
        let gib = |sizes: &[u64]| sizes.iter().map(|size| size << 30).collect();
        let config = HostConfig {
            guests: usize::try_from(args.guests)?,
            sizes: match args.of {
                Of::Counters => gib(&[2, 4, 8, 16]),
                Of::Pages => gib(&[1, 2]),
            },
            overcommit_percent: *overcommit_percent,
            rules: Some(rules.clone()),
            seed: args.seed,
            events: Events { leaks_one_in: args.leaks },
            faulty_one_in: args.faulty,
            policy_dies: args.policy_dies,
            deflates_on_oom: !args.no_deflate_on_oom,
        };
        let enough = compared.first().map(|first| first.sized.clone());
        compared.push(match args.of {
            Of::Counters => {
                let sized = enough.unwrap_or_else(|| sized::<Counted>(hosts, &config, time, &done));
                compare::<Counted>(sized, hosts, &config, time, &done)
            }
            Of::Pages => {
                let sized = enough.unwrap_or_else(|| sized::<Paged>(hosts, &config, time, &done));
                compare::<Paged>(sized, hosts, &config, time, &done)
            }
        });
    }
    progress.finish_and_clear();
    if let Some(path) = &args.chart {
        let svg = report::curve(&compared, time.as_secs_f64() / 86400.0);
        fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&compared)?),
        false => print!("{}", report::table(&compared)),
    }
    Ok(())
}
