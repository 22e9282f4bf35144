// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each attempt is made in a process of its own: this program again, inside the sandbox.

use std::env;
use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;
use std::thread;

use rustix::fs::{
    AtFlags, FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create, unlinkat,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

use super::{Sandbox, enter};

/// Names the attempt to the process that makes it.
const ATTEMPT: &str = "SANDBOX_ATTEMPT";
const MODE: &str = "SANDBOX_MODE";
/// Set for an attempt that a worker makes.
const WORKER: &str = "SANDBOX_WORKER";
/// Exit status of an attempt that failed with `ENOSYS`, and of one that succeeded.
const ABSENT: i32 = 40;
const DONE: i32 = 41;

type Attempt = fn(&File) -> io::Result<()>;

/// Calls `number` with zeros, which the filter looks at before the kernel does.
fn raw(number: libc::c_long) -> io::Result<()> {
    // SAFETY: each call here fails with null pointers and the descriptor 0, or does nothing.
    match unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Calls `number` with zeros but for one argument.
fn raw_with(number: libc::c_long, argument: usize, value: libc::c_long) -> io::Result<()> {
    let mut all = [0; 6];
    all[argument] = value;
    let [a, b, c, d, e, f] = all;
    // SAFETY: as above: the addresses are null, or of a page that is not mapped.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn map(prot: libc::c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, where the kernel likes.
    match unsafe { libc::mmap(ptr::null_mut(), 4096, prot, flags, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What ends the process. The file is one page of shared memory.
const DENIED: [(&str, Attempt); 35] = [
    ("exec", |_| Err(Command::new("/bin/true").exec())),
    ("fork", |_| Command::new("/bin/true").status().map(drop)),
    ("write to a file by path", |_| File::create("/tmp/sandbox-attempt").map(drop)),
    ("append", |_| File::options().append(true).open("/etc/hostname").map(drop)),
    ("unlink", |_| std::fs::remove_file("/tmp/sandbox-attempt")),
    ("unlink at", |file| Ok(unlinkat(file, "x", AtFlags::empty())?)),
    ("rename", |_| std::fs::rename("/tmp/sandbox-attempt", "/tmp/other")),
    ("folder", |_| std::fs::create_dir("/tmp/sandbox-attempt")),
    ("stat by path", |_| std::fs::metadata("/etc/hostname").map(drop)),
    ("TCP client", |_| TcpStream::connect("127.0.0.1:9").map(drop)),
    ("TCP server", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("UDP", |_| UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("netlink", |_| {
        // SAFETY: three numbers.
        match unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    ("executable memory", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("allocation of a file's blocks", |file| {
        Ok(fallocate(file, FallocateFlags::empty(), 0, 4096)?)
    }),
    ("collapse of a file", |file| Ok(fallocate(file, FallocateFlags::COLLAPSE_RANGE, 0, 4096)?)),
    ("signal to another process", |_| Ok(kill_process(Pid::INIT, Signal::CONT)?)),
    ("limit", |_| Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)),
    ("limit at an address of 33 bits", |_| {
        // SAFETY: the pointer is not read: the call is denied, or fails with EFAULT.
        match unsafe { libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, 1_u64 << 32, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    ("connection of an open TCP socket", |_| raw_with(libc::SYS_connect, 2, 16)),
    ("address of an open UDP socket", |_| raw_with(libc::SYS_sendto, 4, 4096)),
    ("flags of a shared file", |file| {
        Ok(rustix::fs::fcntl_setfl(file, rustix::fs::OFlags::APPEND)?)
    }),
    ("truncation", |file| Ok(ftruncate(file, 0)?)),
    ("seals", |file| Ok(rustix::fs::fcntl_add_seals(file, rustix::fs::SealFlags::WRITE)?)),
    ("another process's memory", |_| raw(libc::SYS_process_vm_readv)),
    ("tracing", |_| raw(libc::SYS_ptrace)),
    ("mount", |_| raw(libc::SYS_mount)),
    ("namespaces", |_| raw(libc::SYS_unshare)),
    ("io_uring", |_| raw(libc::SYS_io_uring_setup)),
    ("BPF", |_| raw(libc::SYS_bpf)),
    ("userfaultfd", |_| raw(libc::SYS_userfaultfd)),
    ("descriptors of others", |_| raw(libc::SYS_pidfd_getfd)),
    ("keys", |_| raw(libc::SYS_keyctl)),
    ("strict mode of old", |_| raw(libc::SYS_seccomp)),
    ("filter that asks another process", |_| {
        let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // SAFETY: the null pointer is looked at after the filter has denied the call.
        match unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, listener, 0)
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
];

/// What ends the process in the worker, and in no other thread.
const DENIED_TO_WORKER: [(&str, Attempt); 5] = [
    ("worker: pair of sockets", |_| std::os::unix::net::UnixStream::pair().map(drop)),
    ("worker: pipe", |_| io::pipe().map(drop)),
    ("worker: eventfd", |_| vmm_sys_util::eventfd::EventFd::new(0).map(drop)),
    ("worker: thread", |_| thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into())),
    ("worker: message", |_| raw(libc::SYS_recvmsg)),
];

/// Makes the attempt in a worker; what it says.
fn in_worker(attempt: Attempt, file: &File) -> io::Result<()> {
    let made = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            super::worker::enter();
            attempt(file)
        });
        worker.join()
    });
    made.map_err(|_| io::ErrorKind::Other)?
}

/// What the C library takes no for.
const ABSENT_CALLS: [(&str, Attempt); 3] = [
    ("read of a file by path", |_| File::open("/etc/hostname").map(drop)),
    ("this program's path", |_| env::current_exe().map(drop)),
    ("folder of this process", |_| env::current_dir().map(drop)),
];

/// What the daemon does.
const NEEDED: [(&str, Attempt); 3] = [
    ("punch", |file| {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(file, hole, 0, 4096)?)
    }),
    ("thread", |_| thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into())),
    ("memory", |_| map(libc::PROT_READ | libc::PROT_WRITE)),
];

/// What ends it in another way.
const FAULTS: [(&str, Attempt); 2] = [
    ("fault", |_| {
        // SAFETY: it is not: that is the point. Nothing is behind it in this process.
        unsafe { ptr::write_volatile(ptr::without_provenance_mut::<u8>(4096), 1) };
        Ok(())
    }),
    ("abort", |_| {
        let text = std::backtrace::Backtrace::force_capture().to_string();
        assert!(!text.is_empty());
        std::process::abort()
    }),
];

/// The process of an attempt; does nothing in the tests' own.
#[test]
fn attempt_is_made_inside_the_sandbox() {
    let Ok(name) = env::var(ATTEMPT) else { return };
    let mode = if env::var_os(MODE).is_some() { Sandbox::Log } else { Sandbox::Strict };
    let all =
        DENIED.iter().chain(&ABSENT_CALLS).chain(&NEEDED).chain(&FAULTS).chain(&DENIED_TO_WORKER);
    let attempt = all.clone().find(|(other, _)| *other == name).unwrap().1;
    let file = File::from(memfd_create("page", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, 4096).unwrap();
    enter(mode, &[]).unwrap();
    let made = match env::var_os(WORKER) {
        Some(_) => in_worker(attempt, &file),
        None => attempt(&file),
    };
    let status = match made {
        Ok(()) => DONE,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => ABSENT,
        Err(error) => panic!("{error}"),
    };
    // SAFETY: ends the process; the harness has threads of its own.
    unsafe { libc::_exit(status) }
}

fn attempted(name: &str, mode: Sandbox) -> ExitStatus {
    attempt(name, mode).output().unwrap().status
}

fn attempted_by_worker(name: &str, mode: Sandbox) -> ExitStatus {
    attempt(name, mode).env(WORKER, "1").output().unwrap().status
}

fn attempt(name: &str, mode: Sandbox) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "sandbox::tests::attempt_is_made_inside_the_sandbox"]);
    command.env(ATTEMPT, name);
    if mode == Sandbox::Log {
        command.env(MODE, "log");
    }
    command
}

#[test]
fn calls_that_are_not_needed_end_the_process() {
    for (name, _) in DENIED {
        let status = attempted(name, Sandbox::Strict);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}");
    }
}

#[test]
fn worker_gets_no_descriptor_and_no_thread() {
    for (name, _) in DENIED_TO_WORKER {
        let status = attempted_by_worker(name, Sandbox::Strict);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}");
        let status = attempted(name, Sandbox::Strict);
        assert_eq!(status.signal(), None, "{name} of another thread: {status}");
        let status = attempted_by_worker(name, Sandbox::Log);
        assert_eq!(status.signal(), None, "{name}, logged: {status}");
    }
    for name in ["punch", "memory"] {
        assert_eq!(attempted_by_worker(name, Sandbox::Strict).code(), Some(DONE), "{name}");
    }
}

#[test]
fn needed_calls_work_and_paths_are_absent() {
    for (name, _) in NEEDED {
        assert_eq!(attempted(name, Sandbox::Strict).code(), Some(DONE), "{name}");
    }
    for (name, _) in ABSENT_CALLS {
        assert_eq!(attempted(name, Sandbox::Strict).code(), Some(ABSENT), "{name}");
    }
}

/// A fault of memory, and a panic with its backtrace, end it by their own signals.
#[test]
fn faults_inside_keep_their_signals() {
    assert_eq!(attempted("fault", Sandbox::Strict).signal(), Some(libc::SIGSEGV));
    assert_eq!(attempted("abort", Sandbox::Strict).signal(), Some(libc::SIGABRT));
}

/// The kernel carries it out, so that it fails for another reason or succeeds.
#[test]
fn mode_that_logs_ends_nothing() {
    assert_eq!(attempted("netlink", Sandbox::Log).code(), Some(DONE));
    // An error of another kind than of an absent call: there is no such path, or Landlock denies it.
    let status = attempted("write to a file by path", Sandbox::Log);
    let other = status.code().is_some_and(|code| code != DONE && code != ABSENT);
    assert!(other, "{status}");
}
