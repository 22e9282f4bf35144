// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carries out the policy: asks guests while it needs them, sends leases, ends them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use balloon_policy::{Action, Decision, HostSeen, Policy, Seen};
use tokio::time;
use vhost_device_balloon::operator::TargetView;

use super::guests::{Asked, tell};
use super::lock::{LockError, Locks};
use super::rules::{RulesFile, RulesFileError};
use super::shared::{Round, Shared};
use crate::log::{self, chain};
use crate::memory::MemorySample;
use crate::sockets::{self, AskError, Daemon, LIMIT};

/// A lease lasts so many periods, so that one late round ends none,
const LEASE_PERIODS: u32 = 3;
/// and at least so long.
const SHORTEST_LEASE: Duration = Duration::from_secs(6);
/// How long a daemon may take that did not answer in the last round: many of them must not make a round
/// longer than a lease.
const SILENT_LIMIT: Duration = Duration::from_millis(250);
/// In each so many rounds such a daemon has as much time as any other.
const PATIENT_ROUNDS: u64 = 8;
/// How long hostd waits for daemons when it shuts down. Leases that are not ended by then run out.
const END_LIMIT: Duration = Duration::from_secs(3);

/// The policy, its file, and the leases that it has sent.
#[derive(Debug)]
pub(super) struct Steering {
    policy: Policy,
    pub(super) file: RulesFile,
    shared: Shared,
    /// Said on the command line.
    only_shows: bool,
    locks: Locks,
    began: Instant,
    /// The daemons that have a lease of this process.
    leased: BTreeSet<PathBuf>,
    /// The daemons that did not answer in the last round.
    silent: BTreeSet<PathBuf>,
    rounds: u64,
}

impl Steering {
    /// The policy in the file at `path`.
    ///
    /// # Errors
    /// If it is refused.
    pub(super) fn new(
        path: &Path,
        only_shows: bool,
        shared: Shared,
    ) -> Result<Self, RulesFileError> {
        let (file, rules) = RulesFile::open(path)?;
        shared.policy_read(path, None);
        Ok(Self {
            policy: Policy::new(rules),
            file,
            shared,
            only_shows,
            locks: Locks::default(),
            began: Instant::now(),
            leased: BTreeSet::new(),
            silent: BTreeSet::new(),
            rounds: 0,
        })
    }

    /// Locks the directories that are there: no other process may steer their daemons.
    ///
    /// # Errors
    /// If one does.
    pub(super) fn lock(&mut self, dirs: &[PathBuf]) -> Result<(), LockError> {
        if self.only_shows { Ok(()) } else { self.locks.take(dirs) }
    }

    /// Reads the file again if it has changed, or if `always`. A policy that is refused changes nothing.
    /// Returns whether other rules hold.
    pub(super) fn read_again(&mut self, always: bool) -> bool {
        match self.file.read_again(always) {
            Ok(None) => false,
            Ok(Some(rules)) => {
                log::info(format_args!("policy {} holds", self.file.path().display()));
                self.policy.set_rules(rules);
                self.shared.policy_read(self.file.path(), None);
                true
            }
            Err(error) => {
                let error = chain(&error);
                if self.shared.policy_read(self.file.path(), Some(&error)) {
                    log::error(format_args!("{error}; the policy before it holds"));
                }
                false
            }
        }
    }

    /// Time between two rounds.
    pub(super) fn period(&self) -> Duration {
        self.policy.rules().host.period
    }

    fn dry_run(&self) -> bool {
        self.only_shows || self.policy.rules().host.dry_run
    }

    /// Whether guests must be asked now. Otherwise none is woken.
    pub(super) fn wants_samples(&self, memory: &MemorySample, stalls: bool) -> bool {
        self.policy.wants_samples(&host(memory, stalls)) || !self.leased.is_empty()
    }

    /// Asks all guests, decides, and tells the daemons.
    pub(super) async fn round(&mut self, memory: &MemorySample, stalls: bool) {
        let patient = self.rounds.is_multiple_of(PATIENT_ROUNDS);
        self.rounds += 1;
        let limit = |path: &Path| match self.silent.contains(path) && !patient {
            true => SILENT_LIMIT,
            false => LIMIT,
        };
        let daemons = self.shared.sockets().into_iter();
        let daemons = daemons.map(|path| (Daemon::new(&path), limit(&path))).collect();
        let asked = sockets::each_with(daemons, |daemon, limit| async move {
            (daemon.clone(), Asked::of(daemon, limit).await)
        });
        let asked = asked.await;
        let silent = asked.iter().filter(|(_, asked)| asked.status.is_err());
        self.silent = silent.map(|(daemon, _)| daemon.path().to_owned()).collect();
        let claims = asked.iter().map(|(daemon, asked)| {
            let claim = asked.status.as_ref().ok().and_then(|(status, _)| status.name.clone());
            (daemon.path(), claim)
        });
        let names = sockets::names(claims);
        let guests = asked.iter().zip(&names).map(|((_, asked), name)| asked.seen(name)).collect();
        let seen = Seen { now: self.began.elapsed(), host: host(memory, stalls), guests };
        let decisions = self.policy.step(&seen);
        let dry_run = self.dry_run();
        let told = if dry_run {
            self.end_leases().await;
            asked.iter().map(|_| Ok(None)).collect()
        } else {
            self.tell(&asked, &decisions).await
        };
        self.shared.round(Round { asked, names, decisions, told, dry_run });
    }

    /// Tells each daemon what was decided for its guest.
    async fn tell(
        &mut self,
        asked: &[(Daemon, Asked)],
        decisions: &[Decision],
    ) -> Vec<Result<Option<TargetView>, AskError>> {
        let lease = (self.period() * LEASE_PERIODS).max(SHORTEST_LEASE);
        let orders: Vec<_> = asked.iter().zip(decisions).collect();
        for ((daemon, _), decision) in &orders {
            match decision.action {
                // Before it is sent: it may take effect although no answer comes.
                Action::Lease { .. } => drop(self.leased.insert(daemon.path().to_owned())),
                Action::Release => drop(self.leased.remove(daemon.path())),
                Action::Nothing => {}
            }
        }
        // A lease that is not renewed runs out.
        self.leased.retain(|path| {
            orders.iter().any(|((daemon, _), decision)| {
                daemon.path() == path && decision.action != Action::Nothing
            })
        });
        let orders = orders.iter().map(|((daemon, _), decision)| (daemon.clone(), decision.action));
        let told = sockets::each_with(orders.collect(), move |daemon, action| async move {
            tell(&daemon, action, lease).await
        });
        told.await
    }

    /// Ends all leases of this process, for a limited time.
    pub(super) async fn end_leases(&mut self) {
        let daemons: Vec<_> =
            std::mem::take(&mut self.leased).into_iter().map(Daemon::new).collect();
        if daemons.is_empty() {
            return;
        }
        let ended = sockets::each(daemons, |daemon| async move {
            let limit = Duration::MAX;
            tell(&daemon, Action::Release, limit).await
        });
        let failed: Vec<_> = match time::timeout(END_LIMIT, ended).await {
            Ok(ended) => ended.into_iter().filter_map(|(_, told)| told.err()).collect(),
            Err(_) => return log::warning("some daemons did not answer: their leases run out"),
        };
        if !failed.is_empty() {
            let count = failed.len();
            log::warning(format_args!("{count} daemons did not end their leases: those run out"));
        }
    }
}

fn host(memory: &MemorySample, stalls: bool) -> HostSeen {
    HostSeen { total_bytes: memory.total_bytes, available_bytes: memory.available_bytes, stalls }
}
