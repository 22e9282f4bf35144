// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What hostd knows, and how it answers those that ask.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{io, mem, process};

use balloon_policy::{Action, Decision};
use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};
use strum::IntoStaticStr;
use vhost_device_balloon::operator::{
    OPENMETRICS, PLAIN_TEXT, TargetView, from_openmetrics, wants_openmetrics,
};

use super::guest::Guest;
use super::guests::Asked;

use crate::http::{Access, Answer, Answers, error, json, text};
use crate::log::{self, chain};
use crate::memory::Memory;
use crate::metrics::Scrape;
use crate::sockets::{AskError, Daemon, stem};
use crate::views::{GuestView, HostView, PolicyView};

/// What there is to ask for.
const PATHS: &str = "expected one of the paths /v1/host, /metrics";

/// One for all tasks of the process.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: Memory,
    known: Mutex<Known>,
    scraped: tokio::sync::Mutex<Scraped>,
}

/// What is known without asking.
#[derive(Debug, Default)]
struct Known {
    sockets: BTreeSet<PathBuf>,
    state: State,
    dry_run: bool,
    policy: Option<PolicyView>,
    rounds: u64,
    orders: BTreeMap<&'static str, u64>,
    order_failures: u64,
    guests: BTreeMap<PathBuf, Guest>,
}

/// What hostd does.
#[derive(Clone, Copy, Debug, Default, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(super) enum State {
    #[default]
    NoPolicy,
    Relaxed,
    Engaged,
}

/// What was learned and decided in one round, a guest at each place.
pub(super) struct Round {
    pub(super) asked: Vec<(Daemon, Asked)>,
    pub(super) names: Vec<String>,
    pub(super) decisions: Vec<Decision>,
    /// What the daemons said to that.
    pub(super) told: Vec<Result<Option<TargetView>, AskError>>,
    pub(super) dry_run: bool,
}

/// The last scrape of the daemons.
#[derive(Debug, Default)]
struct Scraped {
    began: Option<Instant>,
    last: Arc<Scrape>,
    suspects: BTreeSet<PathBuf>,
}

impl Shared {
    pub(super) fn new(memory: Memory) -> Self {
        let (known, scraped) = (Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Inner { memory, known, scraped }))
    }

    /// Takes the sockets that were found. If the directory cannot be read, those from before stay.
    pub(super) fn found(&self, sockets: io::Result<BTreeSet<PathBuf>>) {
        match sockets {
            Ok(sockets) => self.known().sockets = sockets,
            Err(error) => {
                log::warning(format_args!("cannot look for control sockets: {}", chain(&error)));
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds it can leave it half changed.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sockets that there are.
    pub(super) fn sockets(&self) -> BTreeSet<PathBuf> {
        self.known().sockets.clone()
    }

    /// Takes what hostd does; returns whether that is new.
    pub(super) fn does(&self, state: State) -> bool {
        mem::replace(&mut self.known().state, state) != state
    }

    /// The file of the policy was read, and refused or not; returns whether that is new.
    pub(super) fn policy_read(&self, file: &Path, refused: Option<&str>) -> bool {
        let file = file.display().to_string();
        let policy = Some(PolicyView { file, refused: refused.map(str::to_owned) });
        let mut known = self.known();
        let is_new = known.policy != policy;
        known.policy = policy;
        is_new
    }

    /// Takes what a round brought, and says what has changed for a guest.
    pub(super) fn round(&self, round: Round) {
        let Round { asked, names, decisions, told, dry_run } = round;
        let mut known = self.known();
        known.rounds += 1;
        known.dry_run = dry_run;
        let mut before = mem::take(&mut known.guests);
        let guests = asked.into_iter().zip(names).zip(decisions.into_iter().zip(told));
        for (((daemon, asked), name), (decision, told)) in guests {
            let old = before.remove(daemon.path());
            if decision.action != Action::Nothing && !dry_run {
                *known.orders.entry(decision.why.name()).or_default() += 1;
                known.order_failures += u64::from(told.is_err());
            }
            let guest = Guest::new(name, asked, decision, told, old.as_ref());
            if let Some(news) = guest.news(old.as_ref(), dry_run) {
                log::info(news);
            }
            known.guests.insert(daemon.path().to_owned(), guest);
        }
    }

    /// The host now.
    fn view(&self) -> HostView {
        let memory = self.0.memory.sample().ok();
        let known = self.known();
        let guest = |path: &PathBuf| {
            let socket = path.display().to_string();
            match known.guests.get(path) {
                Some(guest) => GuestView { socket, ..guest.view() },
                None => GuestView { name: stem(path), socket, ..GuestView::default() },
            }
        };
        let orders = known.orders.iter().map(|(why, count)| ((*why).to_owned(), *count));
        HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            state: <&str>::from(known.state).to_owned(),
            dry_run: known.dry_run,
            policy: known.policy.clone(),
            total_bytes: memory.map(|memory| memory.total_bytes),
            available_bytes: memory.map(|memory| memory.available_bytes),
            pressure_percent: memory.and_then(|memory| memory.pressure_percent),
            rounds: known.rounds,
            orders: orders.collect(),
            order_failures: known.order_failures,
            guests: known.sockets.iter().map(guest).collect(),
        }
    }

    /// The page of metrics, from now. Clients that ask meanwhile get the same.
    async fn page(&self) -> Result<String, std::fmt::Error> {
        let asked = Instant::now();
        let mut scraped = self.0.scraped.lock().await;
        if scraped.began.is_none_or(|began| began < asked) {
            let began = Instant::now();
            let sockets = self.known().sockets.clone();
            scraped.last = Arc::new(Scrape::of(sockets, &mut scraped.suspects).await);
            scraped.began = Some(began);
        }
        let scrape = Arc::clone(&scraped.last);
        drop(scraped);
        scrape.page(&self.view())
    }
}

impl Answers for Shared {
    async fn get(self, access: Access, request: Request<Incoming>) -> Answer {
        match (request.uri().path(), access) {
            ("/metrics", _) => match self.page().await {
                Ok(page) => {
                    let accepted = request.headers().get_all(ACCEPT).iter();
                    match wants_openmetrics(accepted.map(|value| value.as_bytes())) {
                        true => text(StatusCode::OK, OPENMETRICS, page),
                        false => text(StatusCode::OK, PLAIN_TEXT, from_openmetrics(&page)),
                    }
                }
                Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
            },
            ("/v1/host", Access::Everything) => json(StatusCode::OK, &self.view()),
            (_, Access::Everything) => error(StatusCode::NOT_FOUND, PATHS),
            (_, Access::Metrics) => error(StatusCode::NOT_FOUND, "expected the path /metrics"),
        }
    }
}
