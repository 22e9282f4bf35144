//! The command line, turned into one checked [`Config`].

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
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// Gives pages of hugetlbfs back, too.
    ///
    /// A page that went back to the pool may be taken by somebody else; the guest that touches it
    /// again is then killed (SIGBUS).
    #[arg(long)]
    hugetlb: bool,

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

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub socket_path: PathBuf,
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
}

/// The longest path that fits `struct sockaddr_un`, with its terminating zero.
const MAX_SOCKET_PATH: usize = 107;

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let len = args.socket_path.as_os_str().len();
        if len > MAX_SOCKET_PATH {
            return Err(ConfigError::PathTooLong(len));
        }
        Ok(Self {
            socket_path: args.socket_path,
            log_level: args.log_level.into(),
            device: DeviceOptions::default(),
            memory: MemoryOptions { hugetlb: args.hugetlb },
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
        let long = "x".repeat(108);
        assert_eq!(config(&["--socket-path", &long]), Err(ConfigError::PathTooLong(108)));
    }
}
