// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process can have a descriptor of, and what each is good for.

use std::fs::{File, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, socketpair};

use super::messages::Carrier;

/// Bytes of each file.
pub(super) const FILE_BYTES: u64 = 2 << 20;

/// What a descriptor is passed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Guest memory or a dirty log: read and written, mapped, and punched.
    Memory,
    /// The same, on a disk of this machine.
    Disk,
    /// An eventfd: kick and error.
    Event,
    /// Takes a signal of eight bytes.
    Signal,
    /// A channel to the frontend.
    Channel,
}

/// One descriptor.
pub(super) struct Thing {
    pub(super) name: String,
    pub(super) fd: OwnedFd,
    pub(super) serves: Vec<Purpose>,
    /// Others have the same file open.
    pub(super) is_shared: bool,
    /// Other ends, which stay open.
    pub(super) peers: Vec<OwnedFd>,
}

fn thing(name: impl Into<String>, fd: impl Into<OwnedFd>, serves: &[Purpose]) -> Thing {
    let (name, serves) = (name.into(), serves.to_vec());
    Thing { name, fd: fd.into(), serves, is_shared: false, peers: Vec::new() }
}

fn owned(fd: i64) -> Option<OwnedFd> {
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a descriptor that a system call has just made, and that nothing else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn memfd(flags: libc::c_uint) -> Option<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"door".as_ptr(), libc::MFD_CLOEXEC | flags) };
    let fd = owned(fd.into())?;
    rustix::fs::ftruncate(&fd, FILE_BYTES).ok()?;
    Some(fd)
}

pub(super) fn file_in(folder: &str) -> OwnedFd {
    let file = tempfile::tempfile_in(folder).unwrap();
    file.set_len(FILE_BYTES).unwrap();
    file.into()
}

/// Whether files of the sources' file system can be guest memory, by its magic number: ext2 to ext4,
/// xfs, btrfs, f2fs.
pub(super) fn sources_on_a_disk() -> bool {
    let stat = rustix::fs::statfs(env!("CARGO_MANIFEST_DIR")).unwrap();
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010].contains(&stat.f_type)
}

const ACCESS: [(&str, i32); 3] =
    [("read", libc::O_RDONLY), ("write", libc::O_WRONLY), ("both", libc::O_RDWR)];
const EXTRA: [(&str, i32); 4] = [
    ("", 0),
    (", append", libc::O_APPEND),
    (", nonblock", libc::O_NONBLOCK),
    (", append, nonblock", libc::O_APPEND | libc::O_NONBLOCK),
];

/// Opens the same once more with each combination of flags: it serves as `serves` says of the access.
fn reopened(
    name: &str,
    make: impl Fn() -> OwnedFd,
    serves: impl Fn(i32) -> Vec<Purpose>,
    things: &mut Vec<Thing>,
) {
    let mut add = |how: String, flags: i32, serves: Vec<Purpose>| {
        let original = make();
        let path = format!("/proc/self/fd/{}\0", original.as_raw_fd());
        // SAFETY: the path is a C string.
        let fd = unsafe { libc::open(path.as_ptr().cast(), flags | libc::O_CLOEXEC) };
        let again = owned(fd.into()).unwrap_or_else(|| panic!("cannot open {name} for {how}"));
        things.push(Thing {
            peers: vec![original],
            ..thing(format!("{name} ({how})"), again, &serves)
        });
    };
    for (access, flags) in ACCESS {
        for (extra, more) in EXTRA {
            add(format!("{access}{extra}"), flags | more, serves(flags));
        }
    }
    add("path".to_owned(), libc::O_PATH, Vec::new());
}

/// One of each.
pub(super) fn things() -> Vec<Thing> {
    use Purpose::{Disk, Memory};
    let mut things = Vec::new();
    let both = |access, purpose: &[Purpose]| match access {
        libc::O_RDWR => purpose.to_vec(),
        _ => Vec::new(),
    };
    reopened("memfd", || memfd(0).unwrap(), |access| both(access, &[Memory]), &mut things);
    let shm = || file_in("/dev/shm");
    reopened("file of tmpfs", shm, |access| both(access, &[Memory]), &mut things);
    let disk: &[Purpose] = if sources_on_a_disk() { &[Disk] } else { &[] };
    let sources = || file_in(env!("CARGO_MANIFEST_DIR"));
    reopened("file of the sources", sources, |access| both(access, disk), &mut things);
    things.extend(memfd(libc::MFD_HUGETLB).map(|fd| thing("memfd of huge pages", fd, &[Memory])));
    seals(&mut things);
    signals(&mut things);
    sockets(&mut things);
    others(&mut things);
    things
}

/// Every set of seals.
fn seals(things: &mut Vec<Thing>) {
    const EXEC: i32 = 0x20;
    let known = [
        libc::F_SEAL_SEAL,
        libc::F_SEAL_SHRINK,
        libc::F_SEAL_GROW,
        libc::F_SEAL_WRITE,
        libc::F_SEAL_FUTURE_WRITE,
        EXEC,
    ];
    for set in 0..1_u32 << known.len() {
        let seals = (0..).zip(known).filter(|(bit, _)| set >> bit & 1 != 0);
        let seals = seals.fold(0, |seals, (_, seal)| seals | seal);
        let fd = memfd(libc::MFD_ALLOW_SEALING).unwrap();
        // SAFETY: without pointers, on an open descriptor. A kernel before 6.3 does not know them all.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            continue;
        }
        // An executable file that is sealed as such is sealed against writes, too.
        let sealed = seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE | EXEC) != 0;
        let serves: &[Purpose] = if sealed { &[] } else { &[Purpose::Memory] };
        things.push(thing(format!("memfd with seals {seals:#x}"), fd, serves));
    }
}

fn signals(things: &mut Vec<Thing>) {
    use Purpose::{Event, Signal};
    for flags in [0, libc::EFD_NONBLOCK, libc::EFD_SEMAPHORE] {
        // SAFETY: without pointers.
        let fd = owned(unsafe { libc::eventfd(0, flags) }.into()).unwrap();
        things.push(thing(format!("eventfd {flags:#x}"), fd, &[Event, Signal]));
    }
    let (read, write) = rustix::pipe::pipe().unwrap();
    things.push(Thing { peers: vec![write], ..thing("reading end of a pipe", read, &[]) });
    let (read, write) = rustix::pipe::pipe().unwrap();
    things.push(Thing { peers: vec![read], ..thing("writing end of a pipe", write, &[Signal]) });
    let both = || {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        OpenOptions::new().read(true).write(true).open(path).unwrap().into()
    };
    let serves = |access| match access {
        libc::O_RDONLY => Vec::new(),
        _ => vec![Signal],
    };
    reopened("pipe", both, serves, things);
}

fn sockets(things: &mut Vec<Thing>) {
    use Purpose::{Channel, Signal};
    let pairs = [
        ("stream", SocketType::STREAM, &[Signal, Channel][..]),
        ("datagram", SocketType::DGRAM, &[Signal]),
        ("seqpacket", SocketType::SEQPACKET, &[Signal]),
    ];
    for (name, kind, serves) in pairs {
        let (fd, peer) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        things.push(Thing { peers: vec![peer], ..thing(format!("unix {name}"), fd, serves) });
    }
    let lonely = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    things.push(thing("unix stream, not connected", lonely.unwrap(), &[Signal]));
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("listener")).unwrap();
    things.push(thing("unix listener", listener, &[Signal]));
    things.push(thing("unix datagram, unbound", UnixDatagram::unbound().unwrap(), &[Signal]));
    things.push(thing("tcp listener", TcpListener::bind("127.0.0.1:0").unwrap(), &[]));
    things.push(thing("udp", UdpSocket::bind("127.0.0.1:0").unwrap(), &[]));
    let families =
        [(AddressFamily::NETLINK, SocketType::RAW), (AddressFamily::VSOCK, SocketType::STREAM)];
    for (family, kind) in families {
        let fd = socket_with(family, kind, SocketFlags::CLOEXEC, None);
        things.extend(fd.ok().map(|fd| thing(format!("{family:?}"), fd, &[])));
    }
}

fn others(things: &mut Vec<Thing>) {
    let shared = |name: String, fd: OwnedFd| Thing { is_shared: true, ..thing(name, fd, &[]) };
    for path in ["/dev/zero", "/dev/null", "/dev/full", "/dev/urandom"] {
        for write in [false, true] {
            let file = File::options().read(true).write(write).open(path);
            things.extend(file.ok().map(|it| shared(format!("{path}, write: {write}"), it.into())));
        }
    }
    for path in ["/", "/dev/shm", "/proc", "/proc/self/status", "/sys", "/proc/self/ns/net"] {
        things.extend(File::open(path).ok().map(|file| shared(path.to_owned(), file.into())));
    }
    // SAFETY: the path is a C string and the set of signals outlives the call; the others have no
    // pointers.
    let made: [(&str, i64); 9] = unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        let itself = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        [
            ("symbolic link", libc::open(c"/proc/self/exe".as_ptr(), itself).into()),
            ("epoll", libc::epoll_create1(libc::EPOLL_CLOEXEC).into()),
            ("timerfd", libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC).into()),
            ("signalfd", libc::signalfd(-1, &raw const none, libc::SFD_CLOEXEC).into()),
            ("inotify", libc::inotify_init1(libc::IN_CLOEXEC).into()),
            ("fanotify", libc::fanotify_init(libc::FAN_CLOEXEC, 0).into()),
            ("pidfd", libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0)),
            ("secret memory", libc::syscall(libc::SYS_memfd_secret, 0)),
            ("userfaultfd", libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC)),
        ]
    };
    things.extend(
        made.into_iter().filter_map(|(name, fd)| Some(shared(name.to_owned(), owned(fd)?))),
    );
}

/// One that a message takes, for its number to be counted.
pub(super) fn fitting(carrier: Option<&Carrier>) -> OwnedFd {
    let takes = |thing: &Thing| {
        let purposes = carrier.map(|carrier| carrier.takes);
        purposes.is_none_or(|takes| thing.serves.iter().any(|purpose| takes.contains(purpose)))
    };
    let found = things().into_iter().find(takes);
    found.map(|thing| thing.fd).unwrap()
}
