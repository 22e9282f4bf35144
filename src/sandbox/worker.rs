// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the worker, the one thread that reads what a guest writes, can no longer do: get a descriptor, hear from
//! anybody, pass a descriptor on, start a thread.

use std::sync::OnceLock;

use log::warn;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use super::{Sandbox, SandboxError};

/// Calls of the other threads. Those of the handler that ends a daemon whose guest memory is gone (`SIGBUS`) are
/// not among them: it runs in the worker, too. Nor is `sendto`: a call may be a socket.
const DENIED: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_clone,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_getdents64,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pipe2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// What happens to a denied call, once system calls of the process are limited.
static LIMITED: OnceLock<Sandbox> = OnceLock::new();

/// Notes that the process is limited.
pub(super) fn process_is_limited(sandbox: Sandbox) {
    // Entered once.
    let _ = LIMITED.set(sandbox);
}

/// Limits this thread, the worker of a session, if the process is limited. A library user's is not.
pub(crate) fn enter() {
    let Some(sandbox) = LIMITED.get() else { return };
    if let Err(error) = limit(*sandbox) {
        warn!(
            "the worker has the rights of the other threads: {}",
            crate::logging::error_chain(&error)
        );
    }
}

fn limit(sandbox: Sandbox) -> Result<(), SandboxError> {
    let build = || -> Result<BpfProgram, seccompiler::BackendError> {
        let denied = match sandbox {
            Sandbox::Strict => SeccompAction::KillProcess,
            Sandbox::Log | Sandbox::None => SeccompAction::Log,
        };
        let rules = DENIED.iter().map(|call| (*call, Vec::new())).collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()
    };
    let filter = build().map_err(SandboxError::of("limit the worker"))?;
    apply_filter(&filter).map_err(SandboxError::of("limit the worker"))
}
