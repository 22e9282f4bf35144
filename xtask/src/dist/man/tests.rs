// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a reader of the man pages relies on.

use std::fs;
use std::process::{Command, Output};

use clap::error::ErrorKind;
use vhost_device_balloon::program;

use super::help_text::Block;
use super::roff::escaped;
use super::{Page, display_name, pages, sections, title, visible};

/// Columns of a terminal.
const COLUMNS: usize = 80;
const DATE: &str = "2026-01-01";

fn all() -> Vec<Page> {
    pages(&program::command(), DATE).unwrap()
}

fn page(name: &str) -> String {
    let file = format!("{name}.1");
    all().into_iter().find(|page| page.file == file).unwrap().text
}

/// Every command with the text after its options.
fn commands() -> Vec<(clap::Command, String)> {
    fn collect(command: &clap::Command, found: &mut Vec<(clap::Command, String)>) {
        let after = command.get_after_long_help().or(command.get_after_help());
        found.push((command.clone(), after.map(ToString::to_string).unwrap_or_default()));
        visible(command).for_each(|below| collect(below, found));
    }
    let mut root = program::command();
    root.build();
    let mut found = Vec::new();
    collect(&root, &mut found);
    found
}

/// The text of a page without its markup.
fn plain(text: &str) -> String {
    ["\\fB", "\\fI", "\\fR"]
        .iter()
        .fold(text.to_owned(), |text, font| text.replace(font, ""))
        .replace("\\-", "-")
        .replace("\\ ", " ")
}

#[test]
fn every_page_has_the_usual_sections() {
    assert_eq!(all().len(), commands().len());
    for Page { file, text } in all() {
        let found: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        let first = ["NAME", "SYNOPSIS", "DESCRIPTION"];
        assert_eq!(found[..3], first, "{file}");
        let last = ["EXIT STATUS", "EXAMPLES", "SEE ALSO"];
        assert_eq!(found[found.len() - 3..], last, "{file}");
        for section in text.split(".SH ").skip(1) {
            assert!(section.lines().count() > 1, "{file}: empty: {section}");
        }
    }
}

#[test]
fn every_option_is_an_entry_of_its_page() {
    for (command, _) in commands() {
        let text = page(display_name(&command));
        for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
            let long = escaped(&format!("--{}", argument.get_long().unwrap()));
            let short = argument.get_short().map(|short| format!("\\fB\\-{short}\\fR, "));
            let long = format!("\n.TP\n{}\\fB{long}", short.unwrap_or_default());
            assert!(text.contains(&long), "{}: {argument}", display_name(&command));
        }
    }
}

#[test]
fn synopsis_names_what_is_mandatory() {
    let synopsis = |name: &str| {
        let text = page(name);
        let (_, rest) = text.split_once(".SH SYNOPSIS\n").unwrap();
        let (forms, _) = rest.split_once(".SH").unwrap();
        plain(forms).lines().filter(|line| !line.starts_with('.')).collect::<Vec<_>>().join("\n")
    };
    let ctl = "vhost-device-balloon ctl --control-socket PATH";
    assert_eq!(
        synopsis("vhost-device-balloon"),
        format!(
            "vhost-device-balloon {{--socket-path PATH | --fd FDNUM}} [OPTION]...\n\
             {ctl} [--json] [--timeout SECONDS] COMMAND"
        )
    );
    assert_eq!(
        synopsis("vhost-device-balloon-ctl-target"),
        format!(
            "{ctl} target [SIZE | --take SIZE | --leave SIZE] [--force] [--lease TIME] [--end-lease] [--json] \
             [--timeout SECONDS]"
        )
    );
    assert_eq!(
        synopsis("vhost-device-balloon-ctl-pin"),
        format!("{ctl} pin [--json] [--timeout SECONDS] ADDRESS SIZE")
    );
}

#[test]
fn variables_are_named_with_their_options() {
    let text = plain(&page("vhost-device-balloon-ctl"));
    let (_, environment) = text.split_once(".SH ENVIRONMENT\n").unwrap();
    let expected = ".TP\nBALLOON_CONTROL\nValue of --control-socket, where that is not given.\n";
    assert!(environment.starts_with(expected), "{environment}");
}

/// The commands of this program in the examples: `ctl` stands for the client with its socket.
fn examples(help: &str) -> Vec<String> {
    let mut found = Vec::new();
    for section in sections(help).unwrap().iter().filter(|section| section.heading == "Examples") {
        for block in &section.blocks {
            let lines = match block {
                Block::Entry(term, _) => (*term).to_owned(),
                Block::Literal(lines) => lines.join("\n").replace("\\\n", ""),
                Block::Prose(_) => continue,
            };
            let commands = lines.split(['\n', '|', ';', '&']).map(str::trim);
            found.extend(commands.filter_map(|command| match command.split_once(' ')? {
                ("ctl", rest) => {
                    Some(format!("vhost-device-balloon ctl --control-socket c {rest}"))
                }
                ("vhost-device-balloon", _) => Some(command.to_owned()),
                _ => None,
            }));
        }
    }
    found
}

#[test]
fn examples_are_command_lines_of_this_program() {
    for (command, help) in commands() {
        let name = display_name(&command);
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{name} has no example");
        for example in &examples {
            let parsed = program::command().try_get_matches_from(example.split_whitespace());
            if let Err(error) = parsed {
                panic!("{name}: {example}: {error}");
            }
        }
        let own = name.strip_prefix("vhost-device-balloon-ctl-").unwrap_or_default();
        assert!(examples.iter().any(|example| example.contains(own)), "{name}: {examples:?}");
    }
    let unknown = examples("Examples:\n  ctl explode   # it\n").remove(0);
    let refused = program::command().try_get_matches_from(unknown.split_whitespace());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidSubcommand);
}

fn ran(program: &str, args: &[&str], page: &Page) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(&page.file);
    fs::write(&path, &page.text).unwrap();
    Command::new(program).args(args).arg(&path).output().unwrap()
}

/// Renders as `man` does.
#[test]
#[ignore = "needs groff: cargo xtask test"]
fn pages_fit_a_terminal_and_break_no_example() {
    let columns = format!("-rLL={COLUMNS}n");
    let groff = ["-man", "-ww", "-Tutf8", "-K", "utf8", "-P-cbou", &columns];
    for (page, (command, help)) in all().iter().zip(commands()) {
        assert_eq!(page.file, format!("{}.1", display_name(&command)));
        let output = ran("groff", &groff, page);
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.file);
        let shown = String::from_utf8(output.stdout).unwrap();
        for line in shown.lines() {
            assert!(line.chars().count() <= COLUMNS, "{}: too wide: {line}", page.file);
        }
        let shown: Vec<_> = shown.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let title = format!("{}(1)", title(display_name(&command)));
        let head: Vec<_> = shown[0].split_whitespace().collect();
        assert!(head.first() == head.last() && *head[0] == title, "{head:?}");
        let foot: Vec<_> = shown[shown.len() - 1].split_whitespace().collect();
        assert_eq!(foot[foot.len() - 2..], [DATE, &title], "{foot:?}");
        for section in sections(&help).unwrap() {
            for block in section.blocks {
                let lines = match block {
                    Block::Literal(lines) => lines,
                    Block::Entry(term, _) if section.heading == "Examples" => vec![term],
                    _ => continue,
                };
                for line in lines {
                    // A short one has its meaning beside it.
                    let is_shown = shown.iter().any(|shown| {
                        *shown == line.trim() || shown.starts_with(&format!("{line} "))
                    });
                    assert!(is_shown, "{}: broken: {line}", page.file);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs mandoc: cargo xtask test"]
fn mandoc_has_nothing_to_say_about_a_page() {
    for page in all() {
        let output = ran("mandoc", &["-T", "lint", "-W", "warning"], &page);
        let said = String::from_utf8_lossy(&output.stdout);
        // It looks for other pages among the installed ones.
        let said: Vec<_> =
            said.lines().filter(|line| !line.contains("referenced manual not found")).collect();
        assert!(said.is_empty(), "{said:#?}");
    }
}
