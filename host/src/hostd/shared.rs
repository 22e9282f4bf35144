// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What hostd knows, and how it answers those that ask.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};
use vhost_device_balloon::operator::{
    OPENMETRICS, PLAIN_TEXT, from_openmetrics, wants_openmetrics,
};

use crate::http::{Access, Answer, Answers, error, json, text};
use crate::log::{self, chain};
use crate::memory::Memory;
use crate::metrics::Scrape;
use crate::sockets::stem;
use crate::views::{GuestView, HostView};

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

    /// The host now.
    fn view(&self) -> HostView {
        let memory = self.0.memory.sample().ok();
        let guest = |path: &PathBuf| GuestView {
            name: stem(path),
            socket: path.display().to_string(),
            ..GuestView::default()
        };
        HostView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            state: "no_policy".to_owned(),
            total_bytes: memory.map(|memory| memory.total_bytes),
            available_bytes: memory.map(|memory| memory.available_bytes),
            pressure_percent: memory.and_then(|memory| memory.pressure_percent),
            guests: self.known().sockets.iter().map(guest).collect(),
            ..HostView::default()
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
