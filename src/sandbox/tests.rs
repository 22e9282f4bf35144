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

fn map(prot: libc::c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, where the kernel likes.
    match unsafe { libc::mmap(ptr::null_mut(), 4096, prot, flags, -1, 0) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What ends the process. The file is one page of shared memory.
const DENIED: [(&str, Attempt); 30] = [
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
    ("another filter", |_| raw(libc::SYS_seccomp)),
];

/// What the C library takes no for.
const ABSENT_CALLS: [(&str, Attempt); 1] =
    [("read of a file by path", |_| File::open("/etc/hostname").map(drop))];

/// What the daemon does.
const NEEDED: [(&str, Attempt); 3] = [
    ("punch", |file| {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(file, hole, 0, 4096)?)
    }),
    ("thread", |_| thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into())),
    ("memory", |_| map(libc::PROT_READ | libc::PROT_WRITE)),
];

/// The process of an attempt; does nothing in the tests' own.
#[test]
fn attempt_is_made_inside_the_sandbox() {
    let Ok(name) = env::var(ATTEMPT) else { return };
    let mode = if env::var_os(MODE).is_some() { Sandbox::Log } else { Sandbox::Strict };
    let all = DENIED.iter().chain(&ABSENT_CALLS).chain(&NEEDED);
    let attempt = all.clone().find(|(other, _)| *other == name).unwrap().1;
    let file = File::from(memfd_create("page", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, 4096).unwrap();
    enter(mode, &[]).unwrap();
    let status = match attempt(&file) {
        Ok(()) => DONE,
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => ABSENT,
        Err(error) => panic!("{error}"),
    };
    // SAFETY: ends the process; the harness has threads of its own.
    unsafe { libc::_exit(status) }
}

fn attempted(name: &str, mode: Sandbox) -> ExitStatus {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "sandbox::tests::attempt_is_made_inside_the_sandbox"]);
    command.env(ATTEMPT, name);
    if mode == Sandbox::Log {
        command.env(MODE, "log");
    }
    command.output().unwrap().status
}

#[test]
fn calls_that_are_not_needed_end_the_process() {
    for (name, _) in DENIED {
        let status = attempted(name, Sandbox::Strict);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}");
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

/// The kernel carries it out, so that it fails for another reason or succeeds.
#[test]
fn mode_that_logs_ends_nothing() {
    assert_eq!(attempted("netlink", Sandbox::Log).code(), Some(DONE));
    // Landlock denies it all the same.
    let status = attempted("write to a file by path", Sandbox::Log);
    assert!(status.signal().is_none() && status.code() != Some(DONE), "{status}");
}
