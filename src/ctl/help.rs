// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `--help` of each command says after the options: examples and exit statuses. The man pages
//! have the same text.

use crate::cli::exit::{self, CtlExit};

/// The command in front of the examples.
const STANDS_FOR: &str = "  Here ctl stands for: vhost-device-balloon ctl --control-socket PATH\n";

/// The examples of each command.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "ctl",
        "  ctl status                  # connection, negotiated features, guest memory
  ctl doctor                  # what is wrong, and what to do
  ctl --json counters         # reported, discarded and skipped memory
  ctl target --leave 1G       # inflate until the guest keeps 1 GiB
  ctl reclaim                 # squeeze available memory out of the guest now, and let go
",
    ),
    (
        "status",
        "  ctl status                                        # as a table
  ctl --json status | jq .memory.resident_bytes     # one value for a program
",
    ),
    ("doctor", "  ctl doctor && echo fine   # exit status 0 if nothing is wrong\n"),
    (
        "statistics",
        "  ctl statistics                          # the last ones, with their age
  ctl --timeout 10 statistics --refresh   # ask the guest, and wait up to 10 s
",
    ),
    (
        "statistics-interval",
        "  ctl statistics-interval 10   # ask the guest every 10 s
  ctl statistics-interval 0    # ask no more
",
    ),
    (
        "target",
        "  ctl target --take 512M   # inflate the balloon to 512 MiB
  ctl target --leave 1G    # inflate until the guest keeps 1 GiB
  ctl target 0             # empty the balloon
  ctl target --take 512M --lease 30s   # for 30 s, unless it is set again
  ctl target               # show the target
",
    ),
    (
        "reclaim",
        "  ctl reclaim                                     # leave the default reserve
  ctl reclaim --keep 512M --timeout 10            # leave 512 MiB available, let go after 10 s
  ctl --json reclaim | jq .resident_after_bytes   # one value for a program
",
    ),
    (
        "park",
        "  ctl park && virsh suspend VM    # squeeze, then stop the VM
  virsh resume VM && ctl unpark   # run it again, and discard again
",
    ),
    ("unpark", "  virsh resume VM && ctl unpark   # the VM runs again: discard again\n"),
    ("pause", "  ctl pause   # before a device is passed through to the guest\n"),
    ("resume", "  ctl resume   # after that device was removed\n"),
    ("pin", "  ctl pin 0x100000000 2M   # 2 MiB from 4 GiB on\n"),
    ("unpin", "  ctl unpin 0x100000000 2M   # the same address and size as in pin\n"),
    ("pins", "  ctl pins   # with the address and size that unpin takes\n"),
    (
        "hinting",
        "  ctl hinting start   # while the guest is idle
  ctl hinting stop    # the guest may use hinted pages again
",
    ),
    ("upgrade", "  apt install ./vhost-device-balloon.deb && ctl upgrade   # a new version\n"),
    ("counters", "  ctl counters   # reported, discarded and skipped memory, with reasons\n"),
    ("reset-counters", "  ctl reset-counters   # before a measurement\n"),
    ("log-level", "  ctl log-level debug   # log every report\n"),
    ("metrics", "  ctl metrics | grep discarded   # what Prometheus would get\n"),
    (
        "top",
        "  ctl top          # all guests of this host; ? for the keys
  ctl top --once   # a table for a pipe; --json for a program
",
    ),
];

/// What ends a reclaim.
const PRESSURE: &str = "
Guest pressure:
  The reclaim belongs to this command: if it is interrupted or killed, the daemon lets go at once.
  These end it early: OOM kills, more than 1 MiB swapped in or out, more than 256 major faults, less
  than half of --keep available, a balloon that the guest deflates.
";

/// The first exit statuses of `doctor`.
const DIAGNOSES: &str = "  0  nothing is wrong; there may be advice\n  1  something is wrong\n";

/// Returns the text after the options of `ctl` or of one of its commands.
pub(super) fn after(command: &str) -> String {
    let examples = EXAMPLES.iter().find(|(name, _)| *name == command).map(|(_, text)| *text);
    let notes = match command {
        "reclaim" | "park" => PRESSURE,
        _ => "",
    };
    format!(
        "Examples:\n{STANDS_FOR}\n{}{notes}\nExit status:\n{}",
        examples.unwrap_or_default(),
        statuses(command)
    )
}

/// Returns the exit statuses that the command can have.
fn statuses(command: &str) -> String {
    match command {
        "ctl" => exit::list::<CtlExit>(),
        "top" => exit::list_if(|status| matches!(status, CtlExit::Done | CtlExit::Usage)),
        "doctor" => {
            let rest = |status: &CtlExit| matches!(status, CtlExit::Usage | CtlExit::NoAnswer);
            DIAGNOSES.to_owned() + &exit::list_if(rest)
        }
        _ => exit::list_if(|status| match status {
            CtlExit::Done | CtlExit::Refused | CtlExit::Usage | CtlExit::NoAnswer => true,
            CtlExit::Pending => command == "target",
            CtlExit::EndedEarly => matches!(command, "reclaim" | "park"),
        }),
    }
}
