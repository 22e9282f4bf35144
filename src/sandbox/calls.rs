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

/// What the libraries go on without (`ENOSYS`), beside opening a file to read it. Flags of `clone3` are
/// in memory, which a filter cannot read: the C library takes `clone` instead. A backtrace asks for names
/// of files, and musl ends a process that aborts with `tkill`, which reaches other processes.
const ABSENT: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_tkill,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

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
    libc::SYS_listen,
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
    libc::SYS_membarrier,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Commands of `fcntl`: looking at a descriptor, and a copy of it.
const FCNTL: &[i32] = &[libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC, libc::F_GET_SEALS];

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
        let mut calls: Rules = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
        calls.insert(libc::SYS_openat, vec![to_read()?]);
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let absent = SeccompFilter::new(calls, SeccompAction::Allow, absent, arch)?;
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
    let answered = ALWAYS.iter().chain(ABSENT);
    let mut rules: Rules = answered.map(|call| (*call, Vec::new())).collect();
    // `malloc` looks into `/proc/sys/vm` before it shrinks.
    rules.insert(libc::SYS_openat, vec![to_read()?]);
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
    let names = [libc::PR_SET_NAME, libc::PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS];
    rules.insert(libc::SYS_prctl, any_of(0, &widen(&names))?);
    // A filter more, of the worker: it can only take away.
    let mode = condition(0, SeccompCmpOp::Eq, u64::from(libc::SECCOMP_SET_MODE_FILTER))?;
    let no_flags = condition(1, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_seccomp, vec![SeccompRule::new(vec![mode, no_flags])?]);
    // A name that the kernel makes up has 8 bytes with its family, and asking for one has 2. Addresses of
    // TCP and UDP are longer, and so are most paths.
    rules.insert(libc::SYS_bind, any_of(2, &[2])?);
    rules.insert(libc::SYS_connect, vec![rule(2, SeccompCmpOp::Le, 8)?]);
    // To the peer, and never one of TCP that is connected on the way.
    let fast_open = u64::from(libc::MSG_FASTOPEN.cast_unsigned());
    rules.insert(libc::SYS_sendmsg, without(2, libc::MSG_FASTOPEN)?);
    let to_peer = vec![
        condition(3, SeccompCmpOp::MaskedEq(fast_open), 0)?,
        SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?,
    ];
    rules.insert(libc::SYS_sendto, vec![SeccompRule::new(to_peer)?]);
    for signal in [libc::SYS_kill, libc::SYS_tgkill] {
        rules.insert(signal, any_of(0, &own)?);
    }
    // `abort`, a fault that the standard library lets end the process, and the C library's two when it
    // starts its first thread.
    let handled = [libc::SIGABRT, libc::SIGSEGV, 32, 33];
    rules.insert(libc::SYS_rt_sigaction, any_of(0, &widen(&handled))?);
    // Asking for a limit of this process, and setting none: a null pointer.
    let ask = |process: u64| {
        SeccompRule::new(vec![
            condition(0, SeccompCmpOp::Eq, process)?,
            SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?,
        ])
    };
    rules.insert(libc::SYS_prlimit64, vec![ask(0)?, ask(u64::from(std::process::id()))?]);
    let mut looks = vec![rule(3, SeccompCmpOp::MaskedEq(EMPTY_PATH), EMPTY_PATH)?];
    if !folders.is_empty() {
        let folders: Vec<i64> = folders.iter().map(|fd| i64::from(fd.as_raw_fd())).collect();
        looks.extend(any_of(0, &folders)?);
        let file = |folder: &i64| {
            let folder = condition(0, SeccompCmpOp::Eq, folder.cast_unsigned())?;
            SeccompRule::new(vec![folder, condition(2, SeccompCmpOp::Eq, 0)?])
        };
        let files: Result<_, _> = folders.iter().map(file).collect();
        rules.insert(libc::SYS_unlinkat, files?);
    }
    rules.insert(libc::SYS_newfstatat, looks);
    rules.insert(libc::SYS_statx, vec![rule(2, SeccompCmpOp::MaskedEq(EMPTY_PATH), EMPTY_PATH)?]);
    Ok(rules)
}

/// So that the descriptor itself can be looked at. A filter cannot see that the path is empty.
const EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

fn widen(values: &[i32]) -> Vec<i64> {
    values.iter().copied().map(i64::from).collect()
}

/// Opening a file to read it. All that would write, and the descriptor of a folder, is the end.
fn to_read() -> Result<SeccompRule, BackendError> {
    let writes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH;
    rule(2, SeccompCmpOp::MaskedEq(u64::from(writes.cast_unsigned())), 0)
}

/// For arguments that have 32 bits in the kernel; not for pointers.
fn condition(
    argument: u8,
    test: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, test, value)
}

fn rule(argument: u8, test: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition(argument, test, value)?])
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
