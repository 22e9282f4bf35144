//! The command line, turned into one checked [`Config`].

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use log::LevelFilter;

use crate::device::DeviceOptions;
use crate::memory::MemoryOptions;

/// Gives the memory that a guest does not use back to the host.
///
/// A vhost-user backend for the virtio-balloon device (virtio id 5). The guest reports its free
/// pages, the daemon punches them out of the shared memory that backs the guest, and answers. One
/// daemon serves one guest; when the VMM hangs up, the next one may connect.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES)]
pub struct Args {
    /// Unix socket to listen on.
    ///
    /// A socket that a dead process left there is replaced; anything else that exists there is an
    /// error. The socket is removed when the daemon ends.
    #[arg(long, value_name = "PATH", required_unless_present = "fd", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,

    /// Descriptor of a Unix socket that whoever started the daemon has opened for it.
    ///
    /// One that listens is used like --socket-path, but its file is left alone. One that is
    /// connected to a frontend is served until that hangs up, and then the daemon ends.
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<RawFd>,

    /// How much to say on standard error.
    ///
    /// `info` tells of connections and sums each one up; `debug` adds a line for every report.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
}

const EXAMPLES: &str = "\
Attach to QEMU 10.2 or later (guest memory must be shared, and there must be no other balloon):

  vhost-device-balloon --socket-path /run/balloon.sock &
  qemu-system-x86_64 -m 4G -machine q35,memory-backend=mem \\
    -object memory-backend-memfd,id=mem,size=4G,share=on \\
    -chardev socket,id=balloon,path=/run/balloon.sock \\
    -device vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=128,config_size=16 \\
    ...

SIGTERM and SIGINT end the daemon; the guest goes on, without giving memory back.";

/// The levels of `--log-level`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
        }
    }
}

/// Where frontends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketSource {
    /// A path to listen on.
    Path(PathBuf),
    /// A socket that this process was started with.
    Fd(RawFd),
}

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen, or whom to serve.
    pub socket: SocketSource,
    /// The least important messages to log.
    pub log_level: LevelFilter,
    /// What the device offers.
    pub device: DeviceOptions,
    /// What may be done to memory.
    pub memory: MemoryOptions,
}

/// What a command line asks for that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The kernel's limit for the path of a Unix socket.
    #[error("--socket-path takes at most {MAX_SOCKET_PATH} bytes, this one has {0}")]
    PathTooLong(usize),
    /// None of the two, or both.
    #[error("expected either --socket-path or --fd")]
    Socket,
}

/// The longest path that fits `struct sockaddr_un`, with its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let socket = match (args.socket_path, args.fd) {
            (Some(path), None) if path.as_os_str().len() > MAX_SOCKET_PATH => {
                return Err(ConfigError::PathTooLong(path.as_os_str().len()));
            }
            (Some(path), None) => SocketSource::Path(path),
            (None, Some(fd)) => SocketSource::Fd(fd),
            _ => return Err(ConfigError::Socket),
        };
        Ok(Self {
            socket,
            log_level: args.log_level.into(),
            device: DeviceOptions::default(),
            memory: MemoryOptions::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        Args::try_parse_from([&["vhost-device-balloon"], args].concat()).unwrap().try_into()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_and_limits() {
        let config_ok = config(&["--socket-path", "/run/s"]).unwrap();
        assert_eq!(config_ok.log_level, LevelFilter::Info);
        assert_eq!(config_ok.socket, SocketSource::Path("/run/s".into()));
        assert_eq!(config(&["--fd", "3"]).unwrap().socket, SocketSource::Fd(3));
        let long = "x".repeat(108);
        assert_eq!(config(&["--socket-path", &long]), Err(ConfigError::PathTooLong(108)));
    }
}
