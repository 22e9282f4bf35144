// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The metrics of all daemons of a host on one page.

mod histogram;
mod merge;
mod own;
mod sample;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use crate::sockets::{self, Daemon};
use crate::views::HostView;
use merge::Merged;

/// What a scrape of the daemons found.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    merged: Merged,
    /// Each VM, and how many lines of its daemon's page were refused; none if there was no page.
    vms: Vec<(String, Option<usize>)>,
    seconds: f64,
}

impl Scrape {
    /// Asks all daemons. Those in `suspects` are asked last; afterwards it has those that did not answer.
    pub(crate) async fn of(found: BTreeSet<PathBuf>, suspects: &mut BTreeSet<PathBuf>) -> Self {
        let began = Instant::now();
        let (last, first): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|path| suspects.contains(path));
        let daemons = first.into_iter().chain(last).map(Daemon::new).collect();
        let answers = sockets::each(daemons, |daemon| async move { daemon.metrics().await }).await;
        suspects.clear();
        let claims = answers.iter().map(|(daemon, page)| {
            let claim = page.as_ref().ok().and_then(|page| merge::vm_of(page));
            (daemon.path(), claim)
        });
        let names = sockets::names(claims);
        let mut scrape = Self::default();
        for ((daemon, page), name) in answers.into_iter().zip(names) {
            let refused = page.ok().map(|page| scrape.merged.add(&name, &page));
            if refused.is_none() {
                suspects.insert(daemon.path().to_owned());
            }
            scrape.vms.push((name, refused));
        }
        scrape.seconds = began.elapsed().as_secs_f64();
        scrape
    }

    /// The page, in OpenMetrics.
    ///
    /// # Errors
    /// None that happens: text can be written to memory.
    pub(crate) fn page(&self, host: &HostView) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.merged.write(&mut text);
        // Its end is that of the page.
        text.push_str(&own::text(self, host)?);
        Ok(text)
    }
}
