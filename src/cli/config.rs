// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A command line, checked.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;

use super::args::Args;
use crate::device::{DeviceOptions, OptionsError};
use crate::discard::MemoryOptions;
use crate::sandbox::Sandbox;

/// The longest path that fits `struct sockaddr_un`, with its terminating zero.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// The socket that VMMs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SocketSource {
    /// The daemon listens at this path.
    Path(PathBuf),
    /// The daemon inherits a socket, which listens or is connected. Not checked yet.
    Fd(RawFd),
}

/// The settings of a daemon, checked as far as that is possible before it starts.
///
/// # Examples
/// ```
/// use vhost_device_balloon::Config;
///
/// let line = ["vhost-device-balloon", "--socket-path", "/run/balloon.sock", "--target", "1G"];
/// assert!(Config::from_args(line).is_ok());
///
/// let unknown = Config::from_args(["vhost-device-balloon", "--socket-path", "s", "--target", "1 GB"]);
/// assert!(unknown.unwrap_err().to_string().contains("expected bytes such as 4096, 512M or 2G"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The socket that VMMs come from.
    pub(crate) socket: SocketSource,
    /// Mode of the file of a socket that the daemon listens on.
    pub(crate) socket_mode: u32,
    /// Group of that file, a name or a number.
    pub(crate) socket_group: Option<String>,
    /// Name of the VM, if the operator gave it one.
    pub(crate) name: Option<String>,
    /// Path of the control socket, if there is one.
    pub(crate) control_socket: Option<PathBuf>,
    /// Loopback address for Prometheus, if there is one.
    pub(crate) metrics_address: Option<SocketAddr>,
    /// What confines the process.
    pub(crate) sandbox: Sandbox,
    /// The least important level that is logged.
    pub(crate) log_level: LevelFilter,
    /// What the device offers.
    pub(crate) device: DeviceOptions,
    /// What may be discarded.
    pub(crate) memory: MemoryOptions,
    /// Whether the operator must resume before anything is discarded.
    pub(crate) paused: bool,
}

impl Config {
    /// The files of the sockets that the daemon makes.
    pub(crate) fn socket_paths(&self) -> impl Iterator<Item = &Path> {
        let frontend = match &self.socket {
            SocketSource::Path(path) => Some(path.as_path()),
            SocketSource::Fd(_) => None,
        };
        frontend.into_iter().chain(self.control_socket.as_deref())
    }

    /// Reads a command line as the `vhost-device-balloon` program does; the first argument is the
    /// program's name.
    ///
    /// # Errors
    /// [`ConfigError`], which says what to change. `--help`, `--version` and the command `ctl` are
    /// errors here: their text is the error's.
    pub fn from_args(
        args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, ConfigError> {
        let args = Args::try_parse_from(args).map_err(|error| ConfigError(Fault::Args(error)))?;
        Ok(args.try_into()?)
    }
}

/// Why a command line makes no [`Config`].
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ConfigError(#[from] Fault);

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// An option or its value.
    #[error(transparent)]
    Args(clap::Error),
    /// Neither a path nor a descriptor, or both.
    #[error("expected either --socket-path PATH or --fd FDNUM")]
    NoSocket,
    /// The kernel's limit for the path of a Unix socket.
    #[error("{option}: the path is too long (got {len} bytes, expected at most {MAX_SOCKET_PATH})")]
    PathTooLong {
        /// The option.
        option: &'static str,
        /// Length of the path in bytes.
        len: usize,
    },
    /// Two sockets at one path.
    #[error("--control-socket and --socket-path must be different paths, both are {}", .0.display())]
    SamePath(PathBuf),
    /// Not the number of a descriptor that can be open.
    #[error("--fd: expected the number of an open socket, 3 or higher, got {0}")]
    BadFd(RawFd),
    /// An address that other machines can reach.
    #[error(
        "--metrics-address: expected an address of this machine only, such as 127.0.0.1:{port} or \
         [::1]:{port}, got {address}: other machines could read the metrics there",
        port = .address.port()
    )]
    NotLoopback {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Options that no device can have.
    #[error(transparent)]
    Device(#[from] OptionsError),
}

impl TryFrom<Args> for Config {
    type Error = Fault;

    fn try_from(args: Args) -> Result<Self, Fault> {
        let socket = match (args.socket_path, args.fd) {
            (Some(path), None) => SocketSource::Path(checked_path("--socket-path", path)?),
            // 0, 1 and 2 are open in every program (vhost-user specification, "Backend program
            // conventions"), and the last is where the log goes.
            (None, Some(fd)) if fd <= libc::STDERR_FILENO => return Err(Fault::BadFd(fd)),
            (None, Some(fd)) => SocketSource::Fd(fd),
            _ => return Err(Fault::NoSocket),
        };
        let control_socket =
            args.control_socket.map(|path| checked_path("--control-socket", path)).transpose()?;
        if let (SocketSource::Path(path), Some(control)) = (&socket, &control_socket)
            && path == control
        {
            return Err(Fault::SamePath(path.clone()));
        }
        if let Some(address) = args.metrics_address
            && !address.ip().is_loopback()
        {
            return Err(Fault::NotLoopback { address });
        }
        let device = DeviceOptions {
            statistics: args.statistics,
            statistics_interval: Duration::from_secs(args.statistics_interval.into()),
            free_page_hints: args.free_page_hints,
            deflate_on_oom: args.deflate_on_oom,
            // The balloon's pages are added up to huge pages only with a driver that acks this.
            must_tell_host: args.hugetlb,
            reporting: !args.no_reporting,
            init_reported: args.experimental_init_reported,
            init_on_inflate: args.experimental_init_on_inflate,
            target_bytes: args.target,
            force_target: args.force_target,
            target_from_vmm: args.target_from_vmm,
        };
        device.check()?;
        Ok(Self {
            socket,
            socket_mode: args.socket_mode,
            socket_group: args.socket_group,
            name: args.name,
            control_socket,
            metrics_address: args.metrics_address,
            sandbox: args.sandbox,
            log_level: args.log_level.into(),
            device,
            memory: MemoryOptions {
                hugetlb: args.hugetlb,
                files: args.allow_file_memory,
                limited_tmpfs: args.allow_limited_tmpfs,
                most_bytes_a_call: args.max_discard_call,
            },
            paused: args.paused,
        })
    }
}

fn checked_path(option: &'static str, path: PathBuf) -> Result<PathBuf, Fault> {
    let len = Path::as_os_str(&path).len();
    if len > MAX_SOCKET_PATH { Err(Fault::PathTooLong { option, len }) } else { Ok(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-device-balloon"], args].concat())
    }

    fn config(args: &[&str]) -> Result<Config, Fault> {
        parse(&[&["--socket-path", "/run/s"], args].concat()).unwrap().try_into()
    }

    #[test]
    fn config_of_no_options_offers_reporting_only() {
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
    fn config_has_every_option() {
        let line = "--name vm-1 --control-socket /run/c --metrics-address [::1]:9 --statistics \
            --statistics-interval 5 --free-page-hints --deflate-on-oom \
            --no-reporting --target 512M --force-target --target-from-vmm --hugetlb --allow-limited-tmpfs \
            --max-discard-call 16M --experimental-init-on-inflate --paused --log-level debug";
        let config = config(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(config.control_socket, Some("/run/c".into()));
        assert_eq!(config.name.as_deref(), Some("vm-1"));
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
                init_reported: false,
                init_on_inflate: true,
                target_bytes: 512 << 20,
                force_target: true,
                target_from_vmm: true,
            }
        );
        assert!(config.memory.hugetlb && config.memory.limited_tmpfs && config.paused);
        assert_eq!(config.memory.most_bytes_a_call, Some(16 << 20));
        assert_eq!(config.log_level, LevelFilter::Debug);
        let config =
            super::tests::config(&["--socket-mode", "660", "--socket-group", "kvm"]).unwrap();
        assert_eq!((config.socket_mode, config.socket_group.as_deref()), (0o660, Some("kvm")));
        let fd = Config::try_from(parse(&["--fd", "3"]).unwrap()).unwrap();
        assert_eq!(fd.socket, SocketSource::Fd(3));
    }

    #[test]
    fn config_has_one_socket() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--socket-path", "s", "--fd", "3"]).is_err());
        let fd = |number: &str| Config::try_from(parse(&["--fd", number]).unwrap());
        assert!(matches!(fd("2"), Err(Fault::BadFd(2))));
    }

    #[test]
    fn config_of_impossible_values_is_refused() {
        let long = "x".repeat(108);
        assert!(matches!(
            config(&["--control-socket", &long]),
            Err(Fault::PathTooLong { option: "--control-socket", len: 108 })
        ));
        assert!(matches!(config(&["--control-socket", "/run/s"]), Err(Fault::SamePath(_))));
        for address in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[2001:db8::1]:1"] {
            assert!(matches!(
                config(&["--metrics-address", address]),
                Err(Fault::NotLoopback { .. })
            ));
        }
        for device in [
            &["--target", "4097"][..],
            &["--target", "16T"],
            &["--free-page-hints"],
            &["--experimental-init-reported", "--no-reporting"],
            &["--statistics", "--statistics-interval", "86401"],
        ] {
            assert!(matches!(config(device), Err(Fault::Device(_))), "{device:?}");
        }
        assert!(config(&["--free-page-hints", "--statistics"]).is_ok());
        assert!(config(&["--free-page-hints", "--no-reporting"]).is_ok());
        assert!(parse(&["--socket-path", "s", "--statistics-interval", "1"]).is_err());
        assert!(config(&["--experimental-init-reported"]).unwrap().device.init_reported);
    }
}
