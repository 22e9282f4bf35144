// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon is made of, and the main thread from its start to its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use event_manager::SubscriberOps;
use log::{info, warn};

use super::announcer::Announcer;
use super::error::{Failure, resources};
use super::event_loop::Daemon;
use super::operators::{self, Subscribers};
use super::process::{Place, Process};
use super::resume::{self, Which};
use super::socket::{self, Access, Frontends, Listening, SocketFile};
use super::{service, watchdog};
use crate::cli::{Config, SocketSource};
use crate::discard::Cause;
use crate::sandbox;
use crate::state::State;
use crate::wake::Wake;

/// Serves VMMs, one after another, until `end` is signalled; on a connected socket, until its VMM
/// disconnects. Returns whether the next daemon goes on with the frontend.
pub(super) fn serve(
    config: &Config,
    place: Place,
    process: Process,
    end: Arc<Wake>,
) -> Result<bool, Failure> {
    let Process { owner, logger, signals, inherited } = process;
    let access = Access {
        mode: config.socket_mode,
        group: config.socket_group.as_deref().map(socket::group).transpose()?,
    };
    let state = Arc::new(State::new(config.device, config.memory));
    if let Some(name) = &config.name {
        state.name_vm(name);
    }
    let mut resumed = resume::open(&state, owner, inherited)?;
    let operators = operators::listen(config, &mut resumed)?;
    if config.paused && !resumed.resumes {
        // Nothing is under way yet.
        let _ = state.inhibit.forbid(Cause::Operator);
        state.keep();
    }
    // Before the sandbox, and so before its threads: a VMM that comes by then waits.
    let (frontends, frontend_file, replaced) = match place {
        Place::Socket(frontends) => (frontends, None, false),
        Place::Path(path) => {
            let Listening { listener, file, replaced } =
                resumed.listen(Which::Frontend, &path, access)?;
            (Frontends::Listener(listener), file, replaced)
        }
    };
    if let Some(logger) = logger {
        let files = [operators.file(), frontend_file.as_ref()];
        let folders: Vec<_> = files.into_iter().flatten().map(SocketFile::folder).collect();
        sandbox::enter(config.sandbox, &folders)?;
        logger.start().map_err(resources("start a thread"))?;
    }
    // The first thread that can end it: from now on the process can be ended, whatever this one does.
    let _watched =
        watchdog::start(&state, signals, Arc::clone(&end)).map_err(resources("start a thread"))?;
    if config.control_socket.is_some() || config.metrics_address.is_some() {
        state.survey.start().map_err(resources("start a thread"))?;
    }
    let mut manager = Subscribers::new()?;
    let _control_file = operators.serve(&state, &mut manager)?;
    let announcer = Announcer::new(&state).map_err(resources("tell drivers of changes"))?;
    manager.add_subscriber(Rc::new(RefCell::new(announcer)));
    let daemon = Daemon::new(state, owner, frontends, resumed.connection.take(), end)?;
    let goes_on = daemon.goes_on();
    let daemon = Rc::new(RefCell::new(daemon));
    manager.add_subscriber(Rc::clone(&daemon) as _);
    match &config.socket {
        SocketSource::Path(path) => info!("listening on {}", path.display()),
        SocketSource::Fd(fd) => info!("using the socket of descriptor {fd}"),
    }
    if !goes_on {
        let serves = daemon.borrow().is_serving();
        owner.notify(&[service::READY, if serves { service::SERVING } else { service::WAITING }]);
    }
    if replaced {
        // It is not known whether a VMM was connected, nor which one.
        warn!(
            "replaced the socket of a daemon that died: a VMM that was connected to it may still \
             run. QEMU does not connect again, and its guest keeps the memory that it frees until \
             the VM is restarted; cloud-hypervisor tries for a minute"
        );
    }
    loop {
        let mut serving = daemon.borrow_mut();
        if let Some(result) = serving.ended.take() {
            owner.notify(&[service::STOPPING]);
            let Some(held) = &resumed.held else { return result.map(|()| false) };
            let leaves = held.is_leaving();
            if result.is_ok() && !leaves {
                held.finish();
            }
            return result.map(|()| leaves);
        }
        serving.keep_time();
        drop(serving);
        match manager.run() {
            Ok(_) => {}
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => {}
            Err(error) => return Err(Failure::EventLoop(error)),
        }
    }
}
