// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the screen shows, and what keys change in it. Neither asks nor draws.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use vhost_device_balloon::operator::parse_size;

use super::act::Action;
use super::columns::COLUMNS;
use super::host::Host;
use super::row::{Look, Row};
use super::text::size;

/// What keys mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// They act on the table.
    #[default]
    Table,
    /// They write the target of this guest.
    Target { socket: PathBuf, text: String, said: Option<String> },
    /// The next one confirms a reclaim from this guest.
    Reclaim { socket: PathBuf },
    /// The next one ends the help.
    Help,
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Quit,
    /// To have the daemon at this socket do something.
    Act(PathBuf, Action),
}

/// The last thing that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) is_error: bool,
}

/// The guests, and where the operator is among them.
#[derive(Debug, Default)]
pub(super) struct App {
    pub(super) host: Host,
    /// By control socket.
    guests: BTreeMap<PathBuf, Guest>,
    /// The control socket of the guest that is selected.
    selected: Option<PathBuf>,
    /// The column that the table is sorted by.
    pub(super) sorted_by: usize,
    pub(super) reversed: bool,
    pub(super) mode: Mode,
    pub(super) said: Option<Said>,
    reclaims: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Guest {
    row: Row,
    look: Option<Look>,
}

impl App {
    /// Takes over which sockets there are now.
    pub(super) fn found(&mut self, sockets: &BTreeSet<PathBuf>) {
        self.guests.retain(|socket, _| sockets.contains(socket));
        for socket in sockets {
            let guest = || Guest { row: Row::new(socket), look: None };
            self.guests.entry(socket.clone()).or_insert_with(guest);
        }
        self.select_by(0);
    }

    /// Takes over what came of a look at a daemon.
    pub(super) fn looked(&mut self, socket: &Path, look: Result<Look, String>) {
        // It may have gone meanwhile.
        let Some(guest) = self.guests.get_mut(socket) else { return };
        match look {
            Ok(look) => {
                guest.row = Row::of(socket, &look, guest.look.as_ref());
                guest.look = Some(look);
            }
            Err(error) => guest.row.error = Some(error),
        }
    }

    /// Takes over what became of an action.
    pub(super) fn acted(&mut self, socket: &Path, action: Action, said: Result<String, String>) {
        if action == Action::Reclaim {
            self.reclaims.remove(socket);
        }
        let is_error = said.is_err();
        let text = said.unwrap_or_else(|error| error);
        if let Mode::Target { socket: of, said, .. } = &mut self.mode
            && of == socket
            && matches!(action, Action::Take(_) | Action::Leave(_))
        {
            if is_error {
                *said = Some(text);
                return;
            }
            self.mode = Mode::Table;
        }
        self.said = Some(Said { text: format!("{}: {text}", self.name(socket)), is_error });
    }

    /// The rows in their order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.guests.values().map(|guest| &guest.row).collect();
        let column = &COLUMNS[self.sorted_by];
        rows.sort_by(|one, other| {
            let order = (column.order)(one, other);
            let order = if self.reversed { order.reverse() } else { order };
            order.then_with(|| one.name.cmp(&other.name))
        });
        rows
    }

    /// Where the selected guest is among them.
    pub(super) fn selected_index(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows().iter().position(|row| row.control_socket == *selected)
    }

    /// The selected guest.
    pub(super) fn selected(&self) -> Option<&Row> {
        self.guests.get(self.selected.as_ref()?).map(|guest| &guest.row)
    }

    /// Whether a reclaim of this program is in progress.
    pub(super) fn reclaims(&self, socket: &Path) -> bool {
        self.reclaims.contains(socket)
    }

    /// The name of a guest.
    pub(super) fn name(&self, socket: &Path) -> String {
        let known = self.guests.get(socket).map(|guest| guest.row.name.clone());
        known.unwrap_or_else(|| Row::new(socket).name)
    }

    /// Moves the selection by so many rows; it stays on a row.
    fn select_by(&mut self, rows: isize) {
        let all = self.rows();
        let last = all.len().saturating_sub(1);
        let at = self.selected_index().unwrap_or(0).saturating_add_signed(rows).min(last);
        self.selected = all.get(at).map(|row| row.control_socket.clone());
    }

    /// Does what a key says; returns what else it asks for.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wanted> {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Wanted::Quit);
        }
        match self.mode.clone() {
            Mode::Table => self.key_of_table(key.code),
            Mode::Help => {
                self.mode = Mode::Table;
                None
            }
            Mode::Target { socket, text, .. } => self.key_of_target(key.code, socket, text),
            Mode::Reclaim { socket } => {
                self.mode = Mode::Table;
                let yes = matches!(key.code, KeyCode::Char('y') | KeyCode::Enter);
                yes.then(|| {
                    self.reclaims.insert(socket.clone());
                    Wanted::Act(socket, Action::Reclaim)
                })
            }
        }
    }

    fn key_of_table(&mut self, code: KeyCode) -> Option<Wanted> {
        match code {
            KeyCode::Char('q') => return Some(Wanted::Quit),
            KeyCode::Down | KeyCode::Char('j') => self.select_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.select_by(-1),
            KeyCode::PageDown => self.select_by(10),
            KeyCode::PageUp => self.select_by(-10),
            KeyCode::Home | KeyCode::Char('g') => self.select_by(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.select_by(isize::MAX),
            KeyCode::Right | KeyCode::Char('>') => {
                self.sorted_by = (self.sorted_by + 1) % COLUMNS.len();
            }
            KeyCode::Left | KeyCode::Char('<') => {
                self.sorted_by = (self.sorted_by + COLUMNS.len() - 1) % COLUMNS.len();
            }
            KeyCode::Char('i') => self.reversed = !self.reversed,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Esc => self.said = None,
            KeyCode::Char(key) => return self.key_of_guest(key),
            _ => {}
        }
        None
    }

    /// A key that is about the selected guest.
    fn key_of_guest(&mut self, key: char) -> Option<Wanted> {
        let row = self.selected()?;
        let (socket, is_paused) = (row.control_socket.clone(), row.is_paused());
        match key {
            't' => self.mode = Mode::Target { socket, text: String::new(), said: None },
            'r' => self.mode = Mode::Reclaim { socket },
            'p' => {
                let action = if is_paused { Action::Resume } else { Action::Pause };
                return Some(Wanted::Act(socket, action));
            }
            'x' => return Some(Wanted::Act(socket, Action::Interrupt)),
            _ => {}
        }
        None
    }

    fn key_of_target(
        &mut self,
        code: KeyCode,
        socket: PathBuf,
        mut text: String,
    ) -> Option<Wanted> {
        let mut said = None;
        match code {
            KeyCode::Esc => {
                self.mode = Mode::Table;
                return None;
            }
            KeyCode::Enter => match parse_target(&text) {
                Ok(action) => {
                    said = Some("asking the daemon".to_owned());
                    self.mode = Mode::Target { socket: socket.clone(), text, said };
                    return Some(Wanted::Act(socket, action));
                }
                Err(why) => said = Some(why),
            },
            KeyCode::Backspace => drop(text.pop()),
            // Longer than that no size is.
            KeyCode::Char(c) if text.len() < 32 => text.push(c),
            _ => {}
        }
        self.mode = Mode::Target { socket, text, said };
        None
    }
}

/// What a written target is, before it is sent, in words.
pub(super) fn target_in_words(text: &str, memory_bytes: Option<u64>) -> String {
    let other = |bytes: u64| memory_bytes.map(|memory| size(memory.saturating_sub(bytes)));
    let (verb, bytes, rest) = match parse_target(text) {
        Ok(Action::Take(bytes)) => {
            ("takes", bytes, other(bytes).map(|left| format!(", leaves {left}")))
        }
        Ok(Action::Leave(bytes)) => {
            ("leaves", bytes, other(bytes).map(|taken| format!(", takes {taken}")))
        }
        _ => return String::new(),
    };
    format!("{verb} {}{}", size(bytes), rest.unwrap_or_default())
}

/// The request that a written target is: `SIZE` or `leave SIZE`.
fn parse_target(text: &str) -> Result<Action, String> {
    let text = text.trim();
    let (action, size): (fn(u64) -> Action, _) = match text.strip_prefix("leave") {
        Some(size) => (Action::Leave, size.trim()),
        None => (Action::Take, text),
    };
    let expected = || format!("expected a size such as 512M, or leave 1G, got {text:?}");
    // Suffixes are capitals, which an operator in a hurry does not write.
    let capital = size.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let suffix = &size[capital.len()..];
    let size = if suffix.len() == 1 {
        capital.to_owned() + &suffix.to_uppercase()
    } else {
        size.to_owned()
    };
    parse_size(&size).map(action).map_err(|_| expected())
}
