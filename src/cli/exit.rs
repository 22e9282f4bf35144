// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The exit statuses of the program.

use std::process::ExitCode;

use clap::ValueEnum;

/// Exit statuses of the daemon. The help lists them with these descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[repr(u8)]
pub(crate) enum DaemonExit {
    /// after SIGTERM, SIGINT or SIGQUIT, or after the VMM of a connected --fd disconnected
    Done = 0,
    /// the daemon cannot start, or the session of a connected --fd failed
    Failed = 1,
    /// the command line is wrong
    Usage = 2,
    /// guest memory is gone (SIGBUS): its file was truncated, or its file system is full
    MemoryLost = 3,
    /// the threads of a session did not end after its VMM disconnected
    Stuck = 4,
    /// the next daemon goes on with the VMM: after SIGTERM where a descriptor store is
    HandedOver = 5,
}

/// Exit statuses of `ctl`. The help lists them with these descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[repr(u8)]
pub(crate) enum CtlExit {
    /// the request was done
    Done = 0,
    /// the daemon refused the request, doctor found something wrong, or an upgrade went back
    Refused = 1,
    /// the command line is wrong
    Usage = 2,
    /// no daemon answers, or no guest that was asked through it
    NoAnswer = 3,
    /// the target is kept and takes effect when the guest driver runs; none runs now
    Pending = 4,
    /// a reclaim ended early (guest pressure, timeout, pause, no driver), or its end is not confirmed
    EndedEarly = 5,
}

impl From<CtlExit> for ExitCode {
    fn from(status: CtlExit) -> Self {
        Self::from(status as u8)
    }
}

impl From<DaemonExit> for ExitCode {
    fn from(status: DaemonExit) -> Self {
        Self::from(status as u8)
    }
}

/// Returns all statuses with their descriptions, one a line.
pub(crate) fn list<T: ValueEnum>() -> String {
    list_if(|_: &T| true)
}

/// Returns those statuses that `applies` selects, one a line.
pub(crate) fn list_if<T: ValueEnum>(applies: impl Fn(&T) -> bool) -> String {
    let help = |value: &T| value.to_possible_value()?.get_help().map(ToString::to_string);
    // Statuses count from 0 in the order of their declaration.
    let lines = T::value_variants().iter().enumerate().filter(|(_, value)| applies(value));
    lines.map(|(code, value)| format!("  {code}  {}\n", help(value).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_listed_with_their_own_numbers() {
        for (index, status) in DaemonExit::value_variants().iter().enumerate() {
            assert_eq!(usize::from(*status as u8), index);
        }
        for (index, status) in CtlExit::value_variants().iter().enumerate() {
            assert_eq!(usize::from(*status as u8), index);
        }
        assert!(list::<DaemonExit>().contains("  3  guest memory is gone"));
        assert!(list::<CtlExit>().lines().all(|line| line.len() > 10));
    }

    #[test]
    fn statuses_of_ctl_documented_as_in_help() {
        let page = include_str!("../../docs/user/control.md");
        let table = page.split_once("| Exit status |").expect("the table of statuses").1;
        let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
        let documented: String = rows
            .map(|row| row.trim_matches(['|', ' ']).replace('`', "").replace(" | ", "  "))
            .map(|row| format!("  {row}\n"))
            .collect();
        assert_eq!(documented, list::<CtlExit>());
    }
}
