// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sockets of control clients and of Prometheus.

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use log::info;

use super::error::{Failure, resources};
use super::resume::{Resumed, Which};
use super::socket::{Access, Listening, SocketFile};
use crate::cli::Config;
use crate::control::server::Server;
use crate::state::State;

/// The event loop of the main thread.
pub(super) type Subscribers = EventManager<Rc<RefCell<dyn MutEventSubscriber>>>;

/// Listens for control clients and for Prometheus, as far as the configuration wants them.
pub(super) fn listen(config: &Config, resumed: &mut Resumed) -> Result<Operators, Failure> {
    let control = match &config.control_socket {
        // A client can shrink the guest.
        Some(path) => Some(resumed.listen(Which::Control, path, Access::OWNER)?),
        None => None,
    };
    let bind =
        |address| TcpListener::bind(address).map_err(|source| Failure::Metrics { address, source });
    let metrics = match (config.metrics_address, resumed.metrics.take()) {
        (Some(_), Some(listener)) => Some(TcpListener::from(listener)),
        (Some(address), None) => Some(bind(address)?),
        (None, _) => None,
    };
    if let (Some(held), Some(metrics)) = (&resumed.held, &metrics) {
        held.keep_listener("metrics", metrics);
    }
    Ok(Operators { control, metrics })
}

/// Where control clients and Prometheus come from.
pub(super) struct Operators {
    control: Option<Listening>,
    metrics: Option<TcpListener>,
}

impl Operators {
    /// The file of the control socket, if the daemon has made one.
    pub(super) fn file(&self) -> Option<&SocketFile> {
        self.control.as_ref()?.file.as_ref()
    }

    /// Serves them from now on, for as long as what this returns is kept.
    pub(super) fn serve(
        self,
        state: &Arc<State>,
        manager: &mut Subscribers,
    ) -> Result<Option<SocketFile>, Failure> {
        let cannot = "serve control clients";
        let mut file = None;
        if let Some(Listening { listener, file: made, .. }) = self.control {
            let server = Server::control(listener, Arc::clone(state)).map_err(resources(cannot))?;
            manager.add_subscriber(Rc::new(RefCell::new(server)));
            file = made;
        }
        if let Some(listener) = self.metrics {
            let address = listener.local_addr().map_err(resources(cannot))?;
            let server = Server::metrics(listener, Arc::clone(state)).map_err(resources(cannot))?;
            manager.add_subscriber(Rc::new(RefCell::new(server)));
            info!("metrics on http://{address}/metrics");
        }
        Ok(file)
    }
}
