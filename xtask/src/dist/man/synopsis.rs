// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The form of a command: what it needs, and what it may have.

use clap::{Arg, ArgGroup, Command};

use super::roff::{bold, escaped, italic};

/// More options than this are not named one by one.
const NAMED: usize = 6;

/// The form of one command, as words in the language of `man`.
pub(super) struct Synopsis {
    /// The commands above with what they need, and the command itself.
    before: Vec<String>,
    /// The options that it needs.
    needs: Vec<String>,
    /// What else it takes.
    rest: Vec<String>,
    /// Whether commands below it exclude its options.
    excludes: bool,
}

impl Synopsis {
    /// The form of the program.
    pub(super) fn of_root(command: &Command) -> Self {
        Self::new(Vec::new(), command)
    }

    /// The form of `below`, a command of this one.
    pub(super) fn of(&self, below: &Command) -> Self {
        let mut before = self.before.clone();
        if !self.excludes {
            before.extend_from_slice(&self.needs);
        }
        Self::new(before, below)
    }

    /// All words.
    pub(super) fn line(&self) -> String {
        [&self.before[..], &self.needs, &self.rest].concat().join(" ")
    }

    fn new(mut before: Vec<String>, command: &Command) -> Self {
        before.push(bold(command.get_name()));
        let excludes = command.is_args_conflicts_with_subcommands_set();
        // Of these one argument excludes the others.
        let groups: Vec<_> =
            command.get_groups().filter(|group| !(*group).clone().is_multiple()).collect();
        let alternatives = |group: &ArgGroup| {
            let args = command.get_arguments().filter(|arg| has(group, arg)).map(inline);
            args.collect::<Vec<_>>().join("\\ |\\ ")
        };
        let alone = |arg: &&Arg| {
            !arg.is_hide_set() && !is_builtin(arg) && !groups.iter().any(|group| has(group, arg))
        };
        let (required, optional): (Vec<_>, Vec<_>) =
            command.get_arguments().filter(alone).partition(|arg| arg.is_required_set());
        let (named, positional): (Vec<_>, Vec<_>) =
            required.into_iter().partition(|arg| !arg.is_positional());

        let mut needs: Vec<_> = named.into_iter().map(inline).collect();
        let mut rest = Vec::new();
        for group in &groups {
            match group.is_required_set() {
                true => needs.push(format!("{{{}}}", alternatives(group))),
                false => rest.push(format!("[{}]", alternatives(group))),
            }
        }
        match optional.len() {
            0..=NAMED => rest.extend(optional.into_iter().map(|arg| format!("[{}]", inline(arg)))),
            _ => rest.push(format!("[{}]...", italic("OPTION"))),
        }
        rest.extend(positional.into_iter().map(inline));
        if command.is_subcommand_required_set() {
            rest.push(italic("COMMAND"));
        }
        Self { before, needs, rest, excludes }
    }
}

/// An argument with its value, in one word: no line ends within.
pub(super) fn inline(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default();
    let values: Vec<_> = values.iter().map(|name| italic(name)).collect();
    let takes_values = arg.get_num_args().is_some_and(|number| number.takes_values());
    match arg.get_long() {
        Some(long) if takes_values => {
            format!("{}\\ {}", bold(&format!("--{long}")), values.join("\\ "))
        }
        Some(long) => bold(&format!("--{long}")),
        None if values.is_empty() => escaped(arg.get_id().as_str()),
        None => values.join("\\ "),
    }
}

/// Whether clap adds it to each command.
fn is_builtin(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn has(group: &ArgGroup, arg: &Arg) -> bool {
    group.get_args().any(|id| id == arg.get_id())
}
