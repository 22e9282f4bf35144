// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model as the guest, with a reporter that makes a pass when it is asked to.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guest_driver::page_alloc::ZoneId;
use guest_driver::reporting::{Config, Reporter};
use guest_driver::virtio::balloon_driver::ReportingQueue;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess, Summary};
use vmm_integration::frontend::Line;
use vmm_integration::guest_memory::Ram;
use vmm_integration::vmm::model::{Holdings, ModelConfig, ModelVm, ReporterThread};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SECTION: u64 = 128 * MIB;
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A quiet guest has reported everything after fewer.
pub(crate) const MANY_PASSES: u32 = 64;
/// Names of what the guest has in use.
pub(crate) const KEPT: u32 = 0;
pub(crate) const FILLED: u32 = 1;

pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
}

pub(crate) fn start() -> DaemonProcess {
    DaemonProcess::spawn(binary(), &DaemonOptions::default()).unwrap()
}

/// One whose calls are as large as several ranges, so that merging shows.
pub(crate) fn start_with_large_calls() -> DaemonProcess {
    let args = vec!["--max-discard-call=32M".into()];
    DaemonProcess::spawn(binary(), &DaemonOptions { args, ..DaemonOptions::default() }).unwrap()
}

/// A guest whose reporter makes a pass when it is told to.
pub(crate) struct Guest {
    pub(crate) vm: ModelVm,
    pub(crate) holdings: Holdings,
    pub(crate) reporter: Reporter,
    pub(crate) queue: ReportingQueue<Ram, Line>,
}

impl Guest {
    pub(crate) fn start(daemon: &DaemonProcess, config: ModelConfig) -> Self {
        Self::with_reporter(daemon, config, Config::default())
    }

    /// One for a reporter on a thread of its own, which makes passes so soon after a free.
    pub(crate) fn hurried(daemon: &DaemonProcess, config: ModelConfig, delay: Duration) -> Self {
        Self::with_reporter(daemon, config, Config { delay, ..Config::default() })
    }

    pub(crate) fn with_reporter(
        daemon: &DaemonProcess,
        config: ModelConfig,
        reporter: Config,
    ) -> Self {
        let mut vm = ModelVm::start(&daemon.socket(), config).unwrap();
        let holdings = Holdings::new(vm.mm(), vm.ram());
        let reporter = Reporter::new(Arc::clone(vm.mm()), reporter).unwrap();
        let queue = vm.take_reporting().unwrap();
        Self { vm, holdings, reporter, queue }
    }

    /// Everything that is free gets where the reporter finds it, and is reported.
    pub(crate) fn report(&mut self) {
        drain(&self.vm);
        for _ in 0..MANY_PASSES {
            if !self.reporter.has_work() {
                self.vm.mm().validate().unwrap();
                return;
            }
            self.reporter.pass(&mut self.queue);
        }
        panic!("a guest that does nothing has something to report after {MANY_PASSES} passes");
    }

    pub(crate) fn resident(&self) -> u64 {
        self.vm.resident_bytes().unwrap()
    }
}

/// Pages on per-CPU lists are not free to anybody else.
pub(crate) fn drain(vm: &ModelVm) {
    (0..vm.mm().zone_count()).for_each(|zone| vm.mm().drain_all(ZoneId(zone)));
}

pub(crate) fn check(holdings: &Holdings, name: u32, bytes: u64) {
    let verdict = holdings.verify(name).unwrap();
    assert_eq!((verdict.checked_bytes, verdict.first), (bytes, None));
}

/// Neither makes the reporter a pass, nor is one asked for.
pub(crate) fn idle(thread: &ReporterThread) -> Result<(), String> {
    let schedule = thread.schedule();
    if schedule.is_idle() { Ok(()) } else { Err(format!("{schedule:?}")) }
}

/// The daemon gave back all that the last guest had reported.
pub(crate) fn nothing_was_skipped(daemon: &DaemonProcess) -> Summary {
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.bytes_reported, summary.bytes_discarded, "{summary:?}");
    assert!(summary.skipped_bytes.values().all(|bytes| *bytes == 0), "{summary:?}");
    summary
}
