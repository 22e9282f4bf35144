//! A vhost-user backend for the virtio-balloon device, built around free page reporting.
//!
//! A guest tells the host which of its pages are free; this daemon gives them back to the host at
//! once. The library is what the `vhost-device-balloon` program is made of, room by room:
//!
//! | room | what it knows |
//! |---|---|
//! | [`args`] | the command line, turned into one checked [`Config`] |
//! | [`daemon`] | the main thread: listener, signals, one session after the other |
//! | [`state`] | what outlives a connection |
//! | [`session`] | one frontend connection, from accept to hang-up |
//! | [`backend`] | vhost-user calls, translated for the device and the memory |
//! | [`vring`] | one virtqueue: take a chain, have it served, return it |
//! | [`device`] | features, queue layout, configuration space, what each queue means |
//! | [`memory`] | range arithmetic, what backs guest memory, the discarding itself |
//! | [`migration`] | the device's state on its way to another daemon |
//! | [`metrics`] | what happened, counted |
//! | [`logging`] | the log on standard error, which never makes a thread wait |
//! | [`control`] | what an operator sees and sets: HTTP, and metrics for Prometheus |
//! | [`ctl`] | the operator's client |

mod announcer;
pub mod args;
pub mod backend;
pub mod control;
pub mod ctl;
pub mod daemon;
pub mod device;
mod emergency;
mod log_limit;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod migration;
pub mod session;
mod sigbus;
mod signals;
mod socket;
pub mod state;
mod survey;
pub mod vring;
mod waiting;
mod wake;
mod watchdog;

pub use args::Config;
pub use daemon::run;
