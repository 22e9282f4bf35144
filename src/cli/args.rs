// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, turned into one checked [`Config`].

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand};
use log::LevelFilter;

use crate::ctl::CtlArgs;
use crate::device::{DeviceOptions, OptionsError};
use crate::discard::MemoryOptions;
use crate::logging::LogLevel;
use crate::values::{parse_interval, parse_size};

/// Gives the memory that a guest does not use back to the host.
///
/// A vhost-user backend for the virtio-balloon device (virtio id 5). The guest reports its free
/// pages, the daemon punches them out of the shared memory that backs the guest, and answers. One
/// daemon serves one guest; when the VMM hangs up, the next one may connect.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(group(ArgGroup::new("socket").args(["socket_path", "fd"]).required(true)))]
pub struct Args {
    /// What to do instead of being the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Unix socket to listen on.
    ///
    /// A socket that a dead process left there is replaced; anything else that exists there is an
    /// error. The socket is removed when the daemon ends.
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Which users may connect to --socket-path: the octal mode of its file, such as 0660.
    ///
    /// A process needs write permission to connect, and whoever connects is the VMM: it sets the
    /// guest's memory. 0600 lets the daemon's user in and no other. The umask has no effect.
    #[arg(long, value_name = "MODE", default_value = "0600", conflicts_with = "fd")]
    #[arg(value_parser = parse_mode)]
    socket_mode: u32,

    /// Group of the file of --socket-path, a name or a number; for a mode such as 0660.
    ///
    /// The daemon's user must be root or a member of it.
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    socket_group: Option<String>,

    /// Open file descriptor of the vhost-user socket, instead of --socket-path.
    ///
    /// For a VMM or a manager that starts the daemon itself. A descriptor that listens serves one
    /// frontend after the other; one that is connected serves that frontend, and the daemon ends
    /// when it hangs up.
    #[arg(long, value_name = "FDNUM", value_parser = parse_fd)]
    fd: Option<RawFd>,

    /// Unix socket to control and watch the daemon through: HTTP with JSON, and Prometheus metrics.
    ///
    /// `vhost-device-balloon ctl` is a client for it, and so is `curl --unix-socket PATH
    /// http://localhost/v1/status`. Only the daemon's user may connect (mode 0600): whoever can,
    /// can shrink the guest. The rules for the file are those of --socket-path.
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,

    /// Address and port of this machine for the Prometheus metrics, such as `127.0.0.1:9090` or
    /// `[::1]:9090`.
    ///
    /// Serves `GET /metrics` and nothing else, to every user of this machine, so an address that
    /// others can reach is refused. Port 0 takes a free one, and the log says which.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_socket_address)]
    metrics_address: Option<SocketAddr>,

    /// Has the guest tell how it uses its memory (VIRTIO_BALLOON_F_STATS_VQ).
    #[arg(long)]
    statistics: bool,

    /// How often the guest is asked for its statistics, in seconds; 0 for only when a control client
    /// asks.
    ///
    /// Every poll wakes the guest. Can be changed at run time.
    #[arg(long, value_name = "SECONDS", default_value = "0", requires = "statistics")]
    #[arg(value_parser = parse_interval)]
    statistics_interval: u32,

    /// Lets the guest hint which pages are free (VIRTIO_BALLOON_F_FREE_PAGE_HINT). Risks the guest's
    /// data: read --help first.
    ///
    /// Hints are made to spare a live migration the free pages: the guest may use a hinted page
    /// again without waiting for an answer. Here hinted pages are given back to the host, so a page
    /// that the guest takes into use while its hint is being served may lose what was just written
    /// to it. Free page reporting has no such race. Only for guests that are idle or paused while
    /// hinting runs, which a control client starts and stops. Needs --statistics or --no-reporting:
    /// with neither, nobody could tell which queue the hints are on.
    #[arg(long)]
    free_page_hints: bool,

    /// Lets the guest take pages out of the balloon when it runs out of memory
    /// (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
    ///
    /// Without it a target that is too large has the guest's OOM killer end processes. With it the
    /// balloon may stay smaller than its target.
    #[arg(long)]
    deflate_on_oom: bool,

    /// Has the guest say so before it uses a page of the balloon again
    /// (VIRTIO_BALLOON_F_MUST_TELL_HOST).
    ///
    /// Nothing here needs it: a page that was given back is there again, zeroed, at the first
    /// touch. For guests and tools that expect it.
    #[arg(long)]
    must_tell_host: bool,

    /// Does not offer free page reporting: memory comes back through the balloon's target only.
    #[arg(long)]
    no_reporting: bool,

    /// Memory that the balloon takes from the guest at first, in bytes, or with a suffix: K, M, G or
    /// T for powers of 1024.
    ///
    /// The size is what the guest goes without, not what it keeps, in whole pages of 4 KiB. A size
    /// that leaves a guest less than a reserve (an eighth of its memory and at least 256 MiB, or
    /// half of a guest with less than 512 MiB) is refused when the guest reads it: the log says so,
    /// and the guest keeps all. Can be changed at run time, if the VMM takes messages from its
    /// backends.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    target: u64,

    /// Lets --target leave a guest less than the reserve. Risks the guest's processes, or all of it.
    #[arg(long, requires = "target")]
    force_target: bool,

    /// Gives pages of hugetlbfs back to the host as well. Risks the guest's life: read --help
    /// first.
    ///
    /// A page that is given back goes to the host's pool of huge pages, and the next process that
    /// asks gets it. If the pool is empty when the guest touches the page again, the kernel ends the
    /// VMM with SIGBUS. Where KVM emulates the guest's instructions there is no signal: the guest
    /// reads ones and its writes are lost. Only where the pool is large enough for all guests at
    /// once, or their VMMs reserve what they map.
    ///
    /// Offers --must-tell-host as well: with a guest that acks it, a huge page also goes back once
    /// all of its 4 KiB pages are in the balloon. Linux does.
    #[arg(long)]
    hugetlb: bool,

    /// Gives pages of a tmpfs with a size limit, such as /dev/shm, back to the host as well. Risks
    /// the guest's life: read --help first.
    ///
    /// Space that is given back can be taken by others that write to the same tmpfs, also if the
    /// VMM had allocated all of it for this guest (prealloc). If the file system is full when the
    /// guest touches the page again, the kernel ends the VMM with SIGBUS. A memfd has no such limit
    /// and does not need this.
    #[arg(long)]
    allow_limited_tmpfs: bool,

    /// Takes guest memory in files on disk, too: ext2, ext3, ext4, xfs, btrfs, f2fs, bcachefs, zfs,
    /// and ramfs.
    ///
    /// Guest memory is expected in shared memory: a memfd, a file in /dev/shm or another tmpfs, or
    /// hugetlbfs. Giving back pages of a file on disk waits for that disk, and control requests wait
    /// with it. Files of FUSE, NFS and the like are refused in any case: their server could keep
    /// the daemon waiting without end.
    #[arg(long)]
    allow_file_memory: bool,

    /// Starts paused: the guest's reports are answered, and nothing is given back until a control
    /// client resumes it.
    ///
    /// For a guest whose memory must stay as it is for now, such as one with a device passed
    /// through (VFIO), or one that a snapshot is being loaded into.
    #[arg(long)]
    paused: bool,

    /// How much to say on standard error.
    ///
    /// Can be changed at run time. Standard error that is not read holds nothing up: lines for which
    /// there is no room are lost, and their number is logged once there is. A line has at most 4096
    /// bytes.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,

    /// Prints what this backend is, as JSON, and exits; all other options are ignored.
    ///
    /// For management software that looks for backends, as the vhost-user specification asks
    /// ("Backend program conventions").
    #[arg(long)]
    print_capabilities: bool,
}

/// What the program does that is not the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Controls and watches a daemon that was started with --control-socket.
    Ctl(CtlArgs),
}

const EXAMPLES: &str = "\
Attach to QEMU 10.2 or later (guest memory must be shared, and there must be no other balloon):

  vhost-device-balloon --socket-path /run/balloon.sock &
  qemu-system-x86_64 -m 4G -machine q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=4G,share=on \\
    -chardev socket,id=balloon,path=/run/balloon.sock \\
    -device vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=128,config_size=16 \\
    ...

All four numbers of the device matter: virtio-id=5; num_vqs=5 covers every set of options (3 without
any, and the guest's driver fails with fewer); vq_size=32 at least, or an older Linux gives up reporting;
config_size=16, or a driver takes all memory (0) or loses its poison value (12).

SIGTERM, SIGINT and SIGQUIT end the daemon. End the VM first: what a running VM does without its backend depends
on the VMM. crosvm ends the VM within a second. QEMU does not connect again: the guest keeps its memory
and its balloon until QEMU is started again, its shutdown may hang, and QEMU 11.1 aborts if the guest
reads the device's configuration. cloud-hypervisor tries to connect for 60 s, and aborts if the guest
reads the configuration meanwhile.

SIGUSR1 logs what was counted. SIGHUP, and others that would end a process, have no effect.

Exit status: 0 after SIGTERM, SIGINT or SIGQUIT, or after the VMM of a connected --fd has hung up, 1 where \
the daemon cannot start, or the session of a connected --fd failed, 2 for a wrong command line, 3 if guest memory was taken away (SIGBUS): its file was truncated, or its file system is full, 4 if \
the threads of a session do not end after its VMM has hung up.";

/// What `--print-capabilities` prints, a `VHostUserBackendCapabilities` of QEMU's `vhost-user.json`.
pub const CAPABILITIES: &str = r#"{"type": "balloon"}"#;

/// Where the frontend is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketSource {
    /// The daemon listens at this path.
    Path(PathBuf),
    /// The daemon was given a socket, which listens or is connected. Not checked yet.
    Fd(RawFd),
}

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where frontends connect.
    pub socket: SocketSource,
    /// Mode of the file of a socket that the daemon listens on.
    pub socket_mode: u32,
    /// Group of that file, a name or a number.
    pub socket_group: Option<String>,
    /// Where to listen for control clients, if for any.
    pub control_socket: Option<PathBuf>,
    /// Where to listen for Prometheus, if at all; a loopback address.
    pub metrics_address: Option<SocketAddr>,
    /// The least important messages to log.
    pub log_level: LevelFilter,
    /// What the device offers.
    pub device: DeviceOptions,
    /// What may be done to memory.
    pub memory: MemoryOptions,
    /// Whether nothing is to be discarded until the operator says so.
    pub paused: bool,
}

/// What a command line asks for that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Neither a path nor a descriptor, or both.
    #[error("expected either --socket-path PATH or --fd FDNUM")]
    NoSocket,
    /// The kernel's limit for the path of a Unix socket.
    #[error("{option} takes a path of at most {MAX_SOCKET_PATH} bytes, this one has {len}")]
    PathTooLong {
        /// The option.
        option: &'static str,
        /// How long the path is.
        len: usize,
    },
    /// Two sockets at one path.
    #[error("--control-socket and --socket-path must be different paths, both are {}", .0.display())]
    SamePath(PathBuf),
    /// Not an open descriptor's number.
    #[error("--fd: expected the number of an open socket, 3 or higher, not {0}")]
    BadFd(RawFd),
    /// Metrics are for this machine only.
    #[error(
        "--metrics-address: expected an address of this machine only, such as 127.0.0.1:{port} or \
         [::1]:{port}, not {address}: anyone who can reach it could read there",
        port = .address.port()
    )]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// A device that cannot be.
    #[error(transparent)]
    Device(#[from] OptionsError),
}

/// The longest path that fits `struct sockaddr_un`, with its terminating zero.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let socket = match (args.socket_path, args.fd) {
            (Some(path), None) => SocketSource::Path(checked_path("--socket-path", path)?),
            // 0, 1 and 2 are open in every program (vhost-user specification, "Backend program
            // conventions"), and the last is where the log goes.
            (None, Some(fd)) if fd <= libc::STDERR_FILENO => return Err(ConfigError::BadFd(fd)),
            (None, Some(fd)) => SocketSource::Fd(fd),
            _ => return Err(ConfigError::NoSocket),
        };
        let control_socket =
            args.control_socket.map(|path| checked_path("--control-socket", path)).transpose()?;
        if let (SocketSource::Path(path), Some(control)) = (&socket, &control_socket)
            && path == control
        {
            return Err(ConfigError::SamePath(path.clone()));
        }
        if let Some(address) = args.metrics_address
            && !address.ip().is_loopback()
        {
            return Err(ConfigError::NotLoopback { address });
        }
        let device = DeviceOptions {
            statistics: args.statistics,
            statistics_interval: Duration::from_secs(args.statistics_interval.into()),
            free_page_hints: args.free_page_hints,
            deflate_on_oom: args.deflate_on_oom,
            // Only then may pages of the balloon be added up to huge ones.
            must_tell_host: args.must_tell_host || args.hugetlb,
            reporting: !args.no_reporting,
            target_bytes: args.target,
            force_target: args.force_target,
        };
        device.check()?;
        Ok(Self {
            socket,
            socket_mode: args.socket_mode,
            socket_group: args.socket_group,
            control_socket,
            metrics_address: args.metrics_address,
            log_level: args.log_level.into(),
            device,
            memory: MemoryOptions {
                hugetlb: args.hugetlb,
                files: args.allow_file_memory,
                limited_tmpfs: args.allow_limited_tmpfs,
            },
            paused: args.paused,
        })
    }
}

fn checked_path(option: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let len = Path::as_os_str(&path).len();
    if len > MAX_SOCKET_PATH { Err(ConfigError::PathTooLong { option, len }) } else { Ok(path) }
}

/// Reads the mode of a socket's file, in octal.
fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("expected an octal mode such as 0600 or 0660, not {text:?}"))
}

fn parse_fd(text: &str) -> Result<RawFd, String> {
    text.parse().map_err(|_| format!("expected the number of an open socket, not {text:?}"))
}

fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "expected an IP address of this machine with a port, such as 127.0.0.1:9090 or \
             [::1]:9090, not {text:?}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-device-balloon"], args].concat())
    }

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        parse(&[&["--socket-path", "/run/s"], args].concat()).unwrap().try_into()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn by_default_it_reports_and_nothing_else() {
        let config = config(&[]).unwrap();
        assert_eq!(config.socket, SocketSource::Path("/run/s".into()));
        assert_eq!(config.log_level, LevelFilter::Info);
        assert_eq!(config.device, DeviceOptions::default());
        assert_eq!(config.memory, MemoryOptions::default());
        assert_eq!((config.control_socket, config.metrics_address), (None, None));
        assert!(!config.paused);
        assert_eq!((config.socket_mode, config.socket_group), (0o600, None));
    }

    #[test]
    fn every_option_arrives() {
        let line = "--control-socket /run/c --metrics-address [::1]:9 --statistics \
            --statistics-interval 5 --free-page-hints --deflate-on-oom --must-tell-host \
            --no-reporting --target 512M --force-target --hugetlb --allow-limited-tmpfs --paused --log-level debug";
        let config = config(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(config.control_socket, Some("/run/c".into()));
        assert_eq!(config.metrics_address, Some("[::1]:9".parse().unwrap()));
        assert_eq!(
            config.device,
            DeviceOptions {
                statistics: true,
                statistics_interval: Duration::from_secs(5),
                free_page_hints: true,
                deflate_on_oom: true,
                must_tell_host: true,
                reporting: false,
                target_bytes: 512 << 20,
                force_target: true,
            }
        );
        assert!(config.memory.hugetlb && config.memory.limited_tmpfs && config.paused);
        assert_eq!(config.log_level, LevelFilter::Debug);
        let config =
            super::tests::config(&["--socket-mode", "660", "--socket-group", "kvm"]).unwrap();
        assert_eq!((config.socket_mode, config.socket_group.as_deref()), (0o660, Some("kvm")));
        let fd = Config::try_from(parse(&["--fd", "3"]).unwrap()).unwrap();
        assert_eq!(fd.socket, SocketSource::Fd(3));
    }

    #[test]
    fn there_is_one_socket() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--socket-path", "s", "--fd", "3"]).is_err());
        let fd = |number: &str| Config::try_from(parse(&["--fd", number]).unwrap());
        assert_eq!(fd("2"), Err(ConfigError::BadFd(2)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let long = "x".repeat(108);
        assert_eq!(
            config(&["--control-socket", &long]),
            Err(ConfigError::PathTooLong { option: "--control-socket", len: 108 })
        );
        assert!(matches!(config(&["--control-socket", "/run/s"]), Err(ConfigError::SamePath(_))));
        for address in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[2001:db8::1]:1"] {
            assert!(matches!(
                config(&["--metrics-address", address]),
                Err(ConfigError::NotLoopback { .. })
            ));
        }
        for device in [
            &["--target", "4097"][..],
            &["--target", "16T"],
            &["--free-page-hints"],
            &["--statistics", "--statistics-interval", "86401"],
        ] {
            assert!(matches!(config(device), Err(ConfigError::Device(_))), "{device:?}");
        }
        assert!(config(&["--free-page-hints", "--statistics"]).is_ok());
        assert!(config(&["--free-page-hints", "--no-reporting"]).is_ok());
        assert!(parse(&["--socket-path", "s", "--statistics-interval", "1"]).is_err());
    }
}
