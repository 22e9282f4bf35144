// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Command lines: options in any order, with any values.
//!
//! A command line that is taken has what it says and nothing that no daemon can have, in whatever order its
//! options come. One that is not says why.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use arbitrary::Arbitrary;

use crate::cli::{Config, MAX_SOCKET_PATH, SocketSource};
use crate::values::{parse_size, show_size};

/// A command line.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    words: Vec<Word>,
    turn: u8,
    size: String,
}

#[derive(Arbitrary, Debug)]
enum Word {
    Option(u8),
    OptionIs(u8, Value),
    Two(u8, Value),
    Any(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    Small(i8),
    Number(i64),
    Size(u16, u8),
    Path(u8),
    Address(u8, u16),
    Mode(u16),
    Level(u8),
    Any(Vec<u8>),
}

const OPTIONS: [&str; 27] = [
    "--socket-path",
    "--socket-mode",
    "--socket-group",
    "--fd",
    "--control-socket",
    "--name",
    "--metrics-address",
    "--statistics",
    "--statistics-interval",
    "--free-page-hints",
    "--deflate-on-oom",
    "--no-reporting",
    "--target",
    "--force-target",
    "--target-from-vmm",
    "--hugetlb",
    "--allow-limited-tmpfs",
    "--max-discard-call",
    "--experimental-init-reported",
    "--experimental-init-on-inflate",
    "--allow-file-memory",
    "--paused",
    "--keeper",
    "--log-level",
    "--print-capabilities",
    "ctl",
    "--sandbox",
];

fn option(index: u8) -> &'static str {
    OPTIONS[usize::from(index) % OPTIONS.len()]
}

impl Value {
    fn text(&self) -> OsString {
        let addresses = ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "192.0.2.1", "localhost"];
        let levels = ["error", "warn", "info", "debug", "trace", "off", "none"];
        match self {
            Self::Small(number) => (number % 8).to_string().into(),
            Self::Number(number) => number.to_string().into(),
            Self::Size(number, unit) => {
                let units = ["", "K", "M", "G", "T", "KiB", "k", "P"];
                format!("{number}{}", units[usize::from(*unit) % units.len()]).into()
            }
            Self::Path(len) => format!("/{}", "s".repeat(usize::from(*len))).into(),
            Self::Address(address, port) => {
                format!("{}:{port}", addresses[usize::from(*address) % addresses.len()]).into()
            }
            Self::Mode(mode) => format!("{mode:o}").into(),
            Self::Level(level) => levels[usize::from(*level) % levels.len()].into(),
            Self::Any(bytes) => OsString::from_vec(bytes.clone()),
        }
    }
}

impl Word {
    fn words(&self) -> Vec<OsString> {
        match self {
            Self::Option(index) => vec![option(*index).into()],
            Self::OptionIs(index, value) => {
                let mut word = OsString::from(option(*index));
                word.push("=");
                word.push(value.text());
                vec![word]
            }
            Self::Two(index, value) => vec![option(*index).into(), value.text()],
            Self::Any(bytes) => vec![OsString::from_vec(bytes.clone())],
        }
    }
}

pub(crate) fn run(input: Input) {
    check_size(&input.size);
    let mut groups: Vec<Vec<OsString>> = input.words.iter().take(16).map(Word::words).collect();
    let parsed = parse(&groups);
    match &parsed {
        Ok(config) => check(config, &groups),
        Err(error) => assert!(!error.is_empty(), "a command line is refused without a reason"),
    }
    // What stands alone may be the value of what is before it.
    let alone = |word: &Word| matches!(word, Word::Option(_) | Word::Any(_));
    if input.words.iter().take(16).any(alone) || groups.is_empty() {
        return;
    }
    let turn = usize::from(input.turn) % groups.len();
    groups.rotate_left(turn);
    let turned = parse(&groups);
    // The same option twice is refused in any order.
    assert_eq!(turned.ok(), parsed.ok(), "the order of options matters: {groups:?}");
}

fn parse(groups: &[Vec<OsString>]) -> Result<Config, String> {
    let program = std::iter::once(OsString::from("vhost-device-balloon"));
    let words = program.chain(groups.iter().flatten().cloned());
    Config::from_args(words).map_err(|error| error.to_string())
}

fn check(config: &Config, groups: &[Vec<OsString>]) {
    match &config.socket {
        SocketSource::Fd(fd) => {
            assert!(*fd > 2, "{fd} is a standard descriptor");
            let number = fd.to_string();
            let named =
                |word: &OsString| word.to_string_lossy().contains(number.trim_start_matches('-'));
            assert!(groups.iter().flatten().any(named), "nobody named {fd}");
        }
        SocketSource::Path(path) => {
            assert!(path.as_os_str().len() <= MAX_SOCKET_PATH);
            assert_ne!(config.control_socket.as_ref(), Some(path), "two sockets at one path");
        }
    }
    if let Some(path) = &config.control_socket {
        assert!(path.as_os_str().len() <= MAX_SOCKET_PATH);
    }
    assert!(config.socket_mode <= 0o777);
    assert!(config.metrics_address.is_none_or(|address| address.ip().is_loopback()));
    let name = config.name.as_deref();
    assert!(name.is_none_or(|name| (1..=255).contains(&name.len()) && !name.contains('\n')));
    config.device.check().expect("a device that there can be");
    assert_eq!(config.device.target_bytes % 4096, 0);
    assert!(config.device.target_bytes < 1 << 44);
    let call = config.memory.most_bytes_a_call.unwrap_or(4096);
    assert!(call.is_power_of_two() && (4096..=1 << 30).contains(&call));
    assert_eq!(config.device.must_tell_host, config.memory.hugetlb);
}

/// A size is read as it is written by hand, and what is shown of it is no more than it.
fn check_size(text: &str) {
    let Ok(bytes) = parse_size(text) else { return };
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let unit = match text[digits.len()..].chars().next() {
        None => 1,
        Some('k' | 'K') => 1_u128 << 10,
        Some('M') => 1 << 20,
        Some('G') => 1 << 30,
        Some('T') => 1 << 40,
        Some(other) => panic!("{other} is no unit"),
    };
    let number: u128 = digits.parse().expect("digits");
    assert_eq!(u128::from(bytes), number * unit, "{text}");
    assert!(!show_size(bytes).is_empty());
}
