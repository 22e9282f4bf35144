// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Options and subcommands, with their help.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand, ValueHint};

use super::help;
use crate::ctl::CtlArgs;
use crate::logging::LogLevel;
use crate::sandbox::Sandbox;
use crate::values::{parse_interval, parse_size};

/// Returns the memory that a guest does not use to the host.
///
/// A vhost-user backend for the virtio-balloon device (virtio device ID 5). The guest driver reports
/// free pages, and the daemon discards them from the shared memory that backs the guest. One daemon
/// serves one guest. When the VMM disconnects, the next VMM can connect.
#[derive(Debug, Parser)]
#[command(version, after_long_help = help::after())]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(group(ArgGroup::new("socket").args(["socket_path", "fd"]).required(true)))]
pub(crate) struct Args {
    /// A command to run instead of the daemon.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Unix socket to listen on for the VMM.
    ///
    /// The daemon replaces the socket of a dead process, and fails if anything else exists at this
    /// path. It removes the socket when it shuts down.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(super) socket_path: Option<PathBuf>,

    /// Octal mode of the --socket-path file, such as 0660: the users that may connect.
    ///
    /// A process needs write permission to connect. A process that connects acts as the VMM: it
    /// sets the guest's memory. 0600 admits only the daemon's user. The umask has no effect.
    #[arg(long, value_name = "MODE", default_value = "0600", conflicts_with = "fd")]
    #[arg(value_parser = parse_mode)]
    pub(super) socket_mode: u32,

    /// Group of the --socket-path file, as a name or a number; for a mode such as 0660.
    ///
    /// The daemon's user must be root or a member of the group.
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    pub(super) socket_group: Option<String>,

    /// Open file descriptor of the vhost-user socket, instead of --socket-path.
    ///
    /// For a VMM or a manager that starts the daemon itself. On a listening socket the daemon serves
    /// one VMM after another. On a connected socket it serves that VMM, and exits when the VMM
    /// disconnects.
    #[arg(long, value_name = "FDNUM", value_parser = parse_fd)]
    pub(super) fd: Option<RawFd>,

    /// Unix socket for control and monitoring: HTTP with JSON, and Prometheus metrics.
    ///
    /// `vhost-device-balloon ctl` is a client for it, and so is `curl --unix-socket PATH
    /// http://localhost/v1/status`. Only the daemon's user may connect (mode 0600), because a client
    /// can shrink the guest. The file is replaced and removed as that of --socket-path.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(super) control_socket: Option<PathBuf>,

    /// Name of the VM: the label `vm` of every metric, and `name` in the status.
    ///
    /// For a scrape of many daemons. Without it metrics have no such label. A name has 1 to 255 bytes
    /// and no control characters.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub(super) name: Option<String>,

    /// Loopback address and port for Prometheus metrics, such as `127.0.0.1:9090` or `[::1]:9090`.
    ///
    /// Serves only `GET /metrics`, to every user of this machine. An address that other machines can
    /// reach is refused. Port 0 selects a free port, and the log names it.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_socket_address)]
    pub(super) metrics_address: Option<SocketAddr>,

    /// Offer guest memory statistics (VIRTIO_BALLOON_F_STATS_VQ).
    #[arg(long)]
    pub(super) statistics: bool,

    /// Seconds between two polls of the guest's statistics; 0 polls only when a control client asks.
    ///
    /// Every poll wakes the guest. Can be changed at run time.
    #[arg(long, value_name = "SECONDS", default_value = "0", requires = "statistics")]
    #[arg(value_parser = parse_interval)]
    pub(super) statistics_interval: u32,

    /// Offer free page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT). Risks guest data: read --help first.
    ///
    /// Hints were designed to let a live migration skip free pages: the guest may reuse a hinted page
    /// without waiting for an answer. This daemon discards hinted pages, so a page that the guest
    /// reuses while its hint is being served may lose what was just written to it. Free page
    /// reporting has no such race. Use hints only with guests that are idle or paused while a hinting
    /// round runs; a control client starts and stops rounds. Requires --statistics or --no-reporting:
    /// with neither, the number of the hinting queue is ambiguous.
    #[arg(long)]
    pub(super) free_page_hints: bool,

    /// Let the guest deflate the balloon when it runs out of memory
    /// (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
    ///
    /// Without this option a target that is too large makes the guest's OOM killer end processes.
    /// With it the balloon can stay smaller than its target.
    #[arg(long)]
    pub(super) deflate_on_oom: bool,

    /// Do not offer free page reporting: only inflating the balloon returns memory.
    #[arg(long)]
    pub(super) no_reporting: bool,

    /// Memory that the balloon takes from the guest at start, in bytes, or with a suffix: K, M, G or
    /// T for powers of 1024.
    ///
    /// The size is what the guest loses, not what it keeps, in whole pages of 4 KiB. A target must
    /// leave the guest a reserve: an eighth of its memory and at least 256 MiB, or half of a guest
    /// with less than 512 MiB. A target that does not is refused when the guest driver reads it: the
    /// log says so, and the guest keeps all of its memory. Can be changed at run time if the VMM
    /// accepts messages from its backends.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(super) target: u64,

    /// Let --target leave the guest less than the reserve. Risks the guest's processes, or the guest.
    #[arg(long, requires = "target")]
    pub(super) force_target: bool,

    /// Let the VMM set the target too, as QEMU's device vhost-user-balloon does for its monitor. Not for
    /// cloud-hypervisor: read --help first.
    ///
    /// The VMM writes num_pages with VHOST_USER_SET_CONFIG and the flag of migration. The last of the VMM
    /// and the control clients decides. What the VMM sets counts as forced: the reserve is its user's
    /// business. cloud-hypervisor sends what a guest writes with the same flag, so that a guest could set
    /// its own target.
    #[arg(long)]
    pub(super) target_from_vmm: bool,

    /// Discard pages of hugetlbfs too. Risks the guest's life: read --help first.
    ///
    /// A discarded page returns to the host's pool of huge pages, where any process can take it. If
    /// the pool is empty when the guest touches the page again, the kernel ends the VMM with SIGBUS.
    /// Where KVM emulates the guest's instructions there is no signal: the guest reads ones and its
    /// writes are lost. Use this only if the pool is large enough for all guests at once, or if their
    /// VMMs reserve the memory that they map.
    ///
    /// Also offers VIRTIO_BALLOON_F_MUST_TELL_HOST. With a driver that acks it, as Linux does, a huge
    /// page is also discarded once all of its 4 KiB pages are in the balloon.
    #[arg(long)]
    pub(super) hugetlb: bool,

    /// Discard pages of a tmpfs with a size limit too, such as /dev/shm. Risks the guest's life: read
    /// --help first.
    ///
    /// Other users of the same tmpfs can take the space of discarded pages, even if the VMM had
    /// allocated all of it for this guest (prealloc). If the file system is full when the guest
    /// touches such a page again, the kernel ends the VMM with SIGBUS. A memfd has no such limit and
    /// does not need this option.
    #[arg(long)]
    pub(super) allow_limited_tmpfs: bool,

    /// Most bytes that one discarding call takes: a power of two from 4K to 1G [default: 2M, or 64M of
    /// hugetlbfs].
    ///
    /// While a call is in progress, a pause, a message of the VMM and SIGTERM wait until it ends; with
    /// pages of 4 KiB so does a process that touches memory which the call discards. Calls below 1M
    /// discard fewer bytes a second. A page that is larger than SIZE goes in one call.
    #[arg(long, value_name = "SIZE", value_parser = parse_call_size)]
    pub(super) max_discard_call: Option<u64>,

    /// Experimental: tell the guest which reported pages are zero
    /// (VIRTIO_BALLOON_F_DEVICE_INIT_REPORTED). Risks guest data: read --help first.
    ///
    /// Feature bit 6, proposed for virtio in 2026 and not settled: it may change or go away. The guest
    /// then skips clearing such a page, so a page that is not zero shows one process what another
    /// one wrote. Use it only if the VMM maps all guest memory shared (share=on) and fills no missing
    /// page by itself, as it does in a restore on demand or a postcopy migration: the daemon cannot
    /// see either.
    #[arg(long)]
    pub(super) experimental_init_reported: bool,

    /// Experimental: tell the guest which inflated pages are zero
    /// (VIRTIO_BALLOON_F_DEVICE_INIT_ON_INFLATE). Risks guest data: read --help first.
    ///
    /// Feature bit 7, proposed for virtio in 2026 and not settled. The conditions are those of
    /// --experimental-init-reported.
    #[arg(long)]
    pub(super) experimental_init_on_inflate: bool,

    /// Accept guest memory in files on disk: ext2, ext3, ext4, xfs, btrfs, f2fs, bcachefs, zfs, and
    /// ramfs.
    ///
    /// By default guest memory must be shared memory: a memfd, a file in /dev/shm or another tmpfs,
    /// or hugetlbfs. Discarding pages of a file on disk waits for that disk, and control requests
    /// wait with it. Files of FUSE, NFS and the like are always refused: their server could block the
    /// daemon without end.
    #[arg(long)]
    pub(super) allow_file_memory: bool,

    /// Start paused: answer the guest's reports, and discard nothing until a control client resumes.
    ///
    /// For a guest whose memory must stay resident for now, such as a guest with a passed-through
    /// device (VFIO), or a guest that a snapshot is being loaded into.
    #[arg(long)]
    pub(super) paused: bool,

    /// Keep the VM's connection when the daemon ends: start another daemon, which goes on with it.
    ///
    /// This process then runs the daemon as its child and holds its sockets, the VM's connection and
    /// the device's state. SIGKILL or SIGTERM to the daemon costs the VM nothing: the next one goes on
    /// within milliseconds. SIGTERM to this process ends both. `ctl upgrade` has the program that is
    /// at its path by then go on. systemd does the same for a unit with FileDescriptorStoreMax= and
    /// needs no keeper.
    #[arg(long, conflicts_with = "fd")]
    pub(crate) keeper: bool,

    /// What happens to a system call that the daemon does not need.
    ///
    /// Once its sockets are open the daemon has no file system, no network and no capability, and makes
    /// only some 70 system calls with the arguments that it needs. `strict` ends it at any other: exit by
    /// SIGSYS, and a line of the kernel (`dmesg`, audit type 1326) with the number of the call. Use `log`
    /// to find such calls without ending the daemon, and `none` to debug it. A part that the kernel does
    /// not have or does not allow is named in the log.
    #[arg(long, value_name = "MODE", default_value = "strict")]
    pub(super) sandbox: Sandbox,

    /// Least important level of messages on standard error.
    ///
    /// Can be changed at run time. The daemon never blocks on standard error: lines for which there
    /// is no room are lost, and their number is logged later. A line has at most 4096 bytes.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: LogLevel,

    /// Print the type of this backend as JSON and exit; all other options are ignored.
    ///
    /// For management software that looks for backends, as the vhost-user specification asks
    /// ("Backend program conventions").
    #[arg(long)]
    print_capabilities: bool,
}

/// Commands that do not start a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Control and monitor a daemon that was started with --control-socket.
    Ctl(CtlArgs),
    /// Run as the one process of this host that knows all daemons: policy and metrics.
    ///
    /// The program vhost-device-balloon-host does it: hostd --help lists the options.
    #[command(after_long_help = help::after_hostd(), disable_help_flag = true)]
    Hostd {
        /// Options of vhost-device-balloon-host hostd.
        #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Reads the mode of a socket's file, in octal.
fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("expected an octal mode such as 0600 or 0660, got {text:?}"))
}

/// Reads the limit of a discarding call: whole pages of every backing, and no more than a call that
/// ends soon.
fn parse_call_size(text: &str) -> Result<u64, String> {
    parse_size(text)
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && (4 << 10..=1 << 30).contains(bytes))
        .ok_or_else(|| format!("expected a power of two from 4K to 1G, got {text:?}"))
}

fn parse_name(text: &str) -> Result<String, String> {
    match (1..=255).contains(&text.len()) && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 255 bytes without control characters".to_owned()),
    }
}

fn parse_fd(text: &str) -> Result<RawFd, String> {
    text.parse().map_err(|_| format!("expected the number of an open socket, got {text:?}"))
}

fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "expected an IP address of this machine with a port, such as 127.0.0.1:9090 or \
             [::1]:9090, got {text:?}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_well_formed() {
        Args::command().debug_assert();
    }
}
