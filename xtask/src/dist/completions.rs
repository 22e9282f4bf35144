// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Completion scripts from the definition of the command line.

#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::{Arg, Command, ValueHint};
use clap_complete::{Generator, Shell};

/// The folder in which each shell finds the scripts of packages.
const FOLDERS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions"),
    (Shell::Zsh, "share/zsh/site-functions"),
    (Shell::Fish, "share/fish/vendor_completions.d"),
];

/// A script, and its path below `/usr`.
pub(super) struct Script {
    pub(super) path: String,
    pub(super) text: String,
}

/// Writes the script of each shell.
///
/// # Errors
/// If one is not UTF-8.
pub(super) fn scripts(command: &Command) -> Result<Vec<Script>> {
    let name = command.get_name().to_owned();
    let mut command = prepared(command.clone());
    let script = |(shell, folder): (Shell, &str)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, &name, &mut text);
        let text = repaired(String::from_utf8(text)?, shell, &command);
        Ok(Script { path: format!("{folder}/{}", shell.file_name(&name)), text })
    };
    FOLDERS.into_iter().map(script).collect()
}

/// Says of each value whether it is a file: a number is none, unless its argument says so.
fn prepared(command: Command) -> Command {
    command.mut_args(hinted).mut_subcommands(prepared)
}

fn hinted(arg: Arg) -> Arg {
    let is_unknown = arg.get_value_hint() == ValueHint::Unknown;
    match is_unknown && arg.get_action().takes_values() {
        true => arg.value_hint(ValueHint::Other),
        false => arg,
    }
}

/// Repairs what clap_complete 4.6 gets wrong.
fn repaired(script: String, shell: Shell, command: &Command) -> String {
    let name = command.get_name();
    match shell {
        // It writes the hyphens of the program's name in two ways, so that no subcommand is recognized
        // (clap issue 6421).
        Shell::Bash => script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__")),
        // What follows a colon in the name of a value would be a command that completes it.
        Shell::Zsh => script.replace(":ADDRESS:PORT:", ":ADDRESS\\:PORT:"),
        Shell::Fish => {
            // An option whose value is being typed is no error.
            let parse =
                format!("argparse -s (__fish_{}_global_optspecs) --", name.replace('-', "_"));
            let whole = format!("{parse} $cmd 2>/dev/null\n");
            let partial = format!("{whole}    or {parse} $cmd[1..-2] 2>/dev/null\n");
            script.replace(&whole, &partial) + &values_of_arguments(command)
        }
        _ => script,
    }
}

/// Writes the values of arguments that are no options, which are left out for fish.
fn values_of_arguments(command: &Command) -> String {
    let name = command.get_name();
    let mut lines = String::new();
    for above in command.get_subcommands() {
        for below in above.get_subcommands() {
            for argument in below.get_positionals() {
                let values = argument.get_possible_values();
                let values: Vec<_> = values.iter().map(|value| value.get_name()).collect();
                if !values.is_empty() {
                    lines += &format!(
                        "complete -c {name} -n \"__fish_{}_using_subcommand {}; and \
                         __fish_seen_subcommand_from {}\" -f -a \"{}\"\n",
                        name.replace('-', "_"),
                        above.get_name(),
                        below.get_name(),
                        values.join(" ")
                    );
                }
            }
        }
    }
    lines
}
