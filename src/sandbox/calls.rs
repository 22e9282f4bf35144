// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls that the daemon makes once it serves, and the arguments that it gives them.
//!
//! Everything else is denied, and so is a call of another architecture's number.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::{Missing, SandboxError};

/// What the C library does without (`ENOSYS`). Flags of `clone3` are in memory, which a filter cannot
/// read: the C library takes `clone` instead. `malloc` looks into `/proc/sys/vm` before it shrinks.
const ABSENT: &[i64] = &[libc::SYS_clone3, libc::SYS_openat];

/// Whatever the arguments: on what is open already, or on this process's own memory and threads.
const ALWAYS: &[i64] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    // Sockets that are there.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mincore,
    // Threads, time and the end.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Commands of `fcntl`: looking at a descriptor, a copy of it, and whether it blocks.
const FCNTL: &[i32] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GET_SEALS,
];

/// Advice on this process's own memory: of the daemon, of `malloc` and of stacks.
const MADVISE: &[i32] = &[
    libc::MADV_DONTNEED,
    libc::MADV_DONTDUMP,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    // MADV_GUARD_INSTALL and MADV_GUARD_REMOVE, of stacks from glibc 2.42 on.
    102,
    103,
];

/// Has the kernel end the process, or log, at any call that is not needed. Returns what is missing.
pub(super) fn limit(
    strict: bool,
    folders: &[BorrowedFd<'_>],
) -> Result<Option<Missing>, SandboxError> {
    let build = || -> Result<[BpfProgram; 2], BackendError> {
        let arch = TargetArch::try_from(ARCH)?;
        let denied = if strict { SeccompAction::KillProcess } else { SeccompAction::Log };
        let needed = SeccompFilter::new(needed(folders)?, denied, SeccompAction::Allow, arch)?;
        // Of two filters the stricter one counts.
        let calls = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let absent = SeccompFilter::new(calls, SeccompAction::Allow, absent, arch)?;
        // The last one denies `seccomp` itself.
        Ok([absent.try_into()?, needed.try_into()?])
    };
    for filter in build().map_err(SandboxError::of("limit system calls"))? {
        match apply_filter(&filter) {
            Ok(()) => {}
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                if is_absent(&error) =>
            {
                let why = format!("this kernel has none: {error}");
                return Ok(Some(Missing { part: "seccomp", why, refused: false }));
            }
            Err(error) => return Err(SandboxError::of("limit system calls")(error)),
        }
    }
    Ok(None)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn needed(folders: &[BorrowedFd<'_>]) -> Result<Rules, BackendError> {
    let mut rules: Rules = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    let own = [i64::from(std::process::id())];
    // Punching a hole, and no other change of a file's blocks.
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    rules.insert(libc::SYS_fallocate, any_of(1, &[i64::from(hole)])?);
    for map in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(map, without(2, libc::PROT_EXEC)?);
    }
    rules.insert(libc::SYS_madvise, any_of(2, &widen(MADVISE))?);
    rules.insert(libc::SYS_fcntl, any_of(1, &widen(FCNTL))?);
    let ioctls =
        [libc::FIONREAD, libc::FIONBIO].map(|call| i64::try_from(call).unwrap_or_default());
    rules.insert(libc::SYS_ioctl, any_of(1, &ioctls)?);
    for made in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(made, any_of(0, &[i64::from(libc::AF_UNIX)])?);
    }
    // Threads, no processes.
    rules.insert(libc::SYS_clone, with(0, libc::CLONE_THREAD)?);
    let names = [libc::PR_SET_NAME, libc::PR_SET_VMA];
    rules.insert(libc::SYS_prctl, any_of(0, &widen(&names))?);
    // To read. All that would write, and an open of a folder to write in, is the end.
    let writes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH;
    rules.insert(libc::SYS_openat, without(2, writes)?);
    for signal in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(signal, any_of(0, &own)?);
    }
    // `abort`, and the C library's two when it starts its first thread.
    let handled = [libc::SIGABRT, 32, 33];
    rules.insert(libc::SYS_rt_sigaction, any_of(0, &widen(&handled))?);
    // Asking for a limit, and setting none.
    rules.insert(libc::SYS_prlimit64, any_of(2, &[0])?);
    let mut looks = vec![rule(3, SeccompCmpOp::MaskedEq(EMPTY_PATH), EMPTY_PATH)?];
    if !folders.is_empty() {
        let folders: Vec<i64> = folders.iter().map(|fd| i64::from(fd.as_raw_fd())).collect();
        looks.extend(any_of(0, &folders)?);
        rules.insert(libc::SYS_unlinkat, any_of(0, &folders)?);
    }
    rules.insert(libc::SYS_newfstatat, looks);
    rules.insert(libc::SYS_statx, vec![rule(2, SeccompCmpOp::MaskedEq(EMPTY_PATH), EMPTY_PATH)?]);
    Ok(rules)
}

/// The descriptor itself, and nothing below it.
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

fn widen(values: &[i32]) -> Vec<i64> {
    values.iter().copied().map(i64::from).collect()
}

/// Each of these arguments has 32 bits in the kernel.
fn rule(argument: u8, test: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let low = SeccompCmpArgLen::Dword;
    SeccompRule::new(vec![SeccompCondition::new(argument, low, test, value)?])
}

fn any_of(argument: u8, values: &[i64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, value.cast_unsigned())).collect()
}

fn without(argument: u8, flag: i32) -> Result<Vec<SeccompRule>, BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(flag), 0)?])
}

fn with(argument: u8, flag: i32) -> Result<Vec<SeccompRule>, BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(flag), flag)?])
}
