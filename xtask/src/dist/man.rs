// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Man pages from the definition of the command line, one for each command.
//!
//! A command's page has what `--help` says. The headings of what follows the options there become sections.

mod help_text;
mod roff;
mod synopsis;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use clap::{Arg, Command};

use help_text::sections;
use roff::{Roff, bold, reference};
use synopsis::{Synopsis, inline};

/// Headings of the help that are the last sections of a page, in this order.
const LAST: [&str; 2] = ["Exit status", "Examples"];
/// The longest title for which the first line of a page, and its last, have room.
const LONGEST_TITLE: usize = 24;
/// What a longer one goes without.
const FAMILY: &str = "vhost-device-balloon-";

/// A page: the name of its file, and its text in the language of `man`.
pub(super) struct Page {
    pub(super) file: String,
    pub(super) text: String,
}

/// Writes the pages of `command` and of each command below it.
///
/// `date` is that of the sources, as YYYY-MM-DD.
///
/// # Errors
/// If the help of a command has no heading where it must have one.
pub(super) fn pages(command: &Command, date: &str) -> Result<Vec<Page>> {
    let mut command = command.clone();
    command.build();
    let version = command.get_version().unwrap_or_default().to_owned();
    let source = format!("{} {version}", command.get_name());
    let writer = Writer { date, source: &source };
    let mut pages = Vec::new();
    writer.write(&command, &Synopsis::of_root(&command), None, &mut pages)?;
    Ok(pages)
}

/// What all pages share.
struct Writer<'a> {
    date: &'a str,
    source: &'a str,
}

impl Writer<'_> {
    fn write(
        &self,
        command: &Command,
        synopsis: &Synopsis,
        parent: Option<&str>,
        pages: &mut Vec<Page>,
    ) -> Result<()> {
        let name = display_name(command);
        let text = self.page(command, synopsis, parent).with_context(|| name.to_owned())?;
        pages.push(Page { file: format!("{name}.1"), text });
        for below in visible(command) {
            self.write(below, &synopsis.of(below), Some(name), pages)?;
        }
        Ok(())
    }

    fn page(&self, command: &Command, synopsis: &Synopsis, parent: Option<&str>) -> Result<String> {
        let name = display_name(command);
        let mut page = Roff::new(title(name), self.date, self.source);
        page.section("Name");
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        page.name(name, about.trim_end_matches('.'));

        page.section("Synopsis");
        page.synopsis(&synopsis.line());
        for below in visible(command).filter(|below| below.has_subcommands()) {
            page.synopsis(&synopsis.of(below).line());
        }

        page.section("Description");
        let long = command.get_long_about().or(command.get_about());
        page.paragraphs(&sentence(long.map(ToString::to_string).unwrap_or_default()));

        arguments(&mut page, command);
        environment(&mut page, command);
        if command.has_subcommands() {
            page.section("Commands");
            for below in visible(command) {
                page.entry(&reference(display_name(below)));
                let about = below.get_about().map(ToString::to_string);
                page.in_entry(&sentence(about.unwrap_or_default()));
            }
        }
        let after = command.get_after_long_help().or(command.get_after_help());
        let after = after.map(ToString::to_string).unwrap_or_default();
        let mut sections = sections(&after)?;
        sections.sort_by_key(|section| LAST.iter().position(|last| *last == section.heading));
        for section in &sections {
            page.section(section.heading);
            page.blocks(&section.blocks);
        }
        let others: Vec<_> = parent.into_iter().chain(visible(command).map(display_name)).collect();
        page.section("See also");
        page.references(&others);
        Ok(page.text())
    }
}

/// Writes what the command takes.
fn arguments(page: &mut Roff, command: &Command) {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let (positional, options): (Vec<_>, Vec<_>) = shown.partition(|arg| arg.is_positional());
    for (heading, args) in [("Arguments", positional), ("Options", options)] {
        if args.is_empty() {
            continue;
        }
        page.section(heading);
        for arg in args {
            let short = arg.get_short().map(|short| bold(&format!("-{short}")) + ", ");
            page.entry(&(short.unwrap_or_default() + &inline(arg)));
            page.in_entry(&described(arg));
            let values = arg.get_possible_values();
            let help = values
                .iter()
                .filter_map(|value| Some((value.get_name(), value.get_help()?.to_string())));
            let entries: Vec<_> = help.collect();
            if !entries.is_empty() {
                page.entries(&entries);
            }
        }
    }
}

/// Writes the variables that stand in for options.
fn environment(page: &mut Roff, command: &Command) {
    let variables: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_env()?.to_string_lossy(), arg.get_long()?)))
        .collect();
    if !variables.is_empty() {
        page.section("Environment");
    }
    for (variable, option) in variables {
        page.entry(&bold(&variable));
        page.in_entry(&format!("Value of --{option}, where that is not given."));
    }
}

/// The help of an argument, with its values where they have no help of their own, and its default.
fn described(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = sentence(help.map(ToString::to_string).unwrap_or_default());
    // What it points to follows here.
    text = text.replace(": read --help first.", ".");
    if !arg.get_num_args().is_some_and(|number| number.takes_values()) {
        return text;
    }
    let values = arg.get_possible_values();
    let values: Vec<_> = values.iter().filter(|value| value.get_help().is_none()).collect();
    if !values.is_empty() {
        let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
        text += &format!(" [possible values: {}]", names.join(", "));
    }
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() {
        text += &format!(" [default: {}]", defaults.join(", "));
    }
    text
}

/// Ends a text with a period, which clap leaves out.
fn sentence(text: String) -> String {
    if text.ends_with(['.', ']', ')']) { text } else { text + "." }
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|below| !below.is_hide_set())
}

/// What stands at the top and the bottom of the page, beside the date.
fn title(name: &str) -> &str {
    if name.len() <= LONGEST_TITLE { name } else { name.strip_prefix(FAMILY).unwrap_or(name) }
}

/// The name of the command's page.
fn display_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}
