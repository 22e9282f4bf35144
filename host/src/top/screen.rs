// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The screen that stays: draws after each event, and leaves the terminal as it was.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::thread;

use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use ratatui::{DefaultTerminal, Frame};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{self, MissedTickBehavior};

use super::act::{Action, carry_out};
use super::app::{App, Wanted};
use super::host::Host;
use super::look::look;
use super::row::Look;
use crate::args::TopArgs;
use crate::sockets::Daemon;

/// What happens.
enum Happens {
    Key(KeyEvent),
    Resized,
    NoTerminal(io::Error),
    Host(Box<Host>),
    Looked(PathBuf, Box<Result<Look, String>>),
    Acted(PathBuf, Action, Result<String, String>),
}

/// Where tasks say what happened.
type Events = UnboundedSender<Happens>;

/// Draws with `draw` until the operator leaves or a signal says so.
///
/// # Errors
/// If the terminal cannot be drawn on, or a directory of sockets not be read.
pub(super) async fn run(args: &TopArgs, draw: fn(&mut Frame<'_>, &App)) -> io::Result<()> {
    // A panic restores the terminal, too.
    let mut terminal = ratatui::try_init()?;
    let shown = show(&mut terminal, args, draw).await;
    // Also if the terminal is gone: then there is nothing to restore.
    let restored = ratatui::try_restore();
    shown.and(restored)
}

async fn show(
    terminal: &mut DefaultTerminal,
    args: &TopArgs,
    draw: fn(&mut Frame<'_>, &App),
) -> io::Result<()> {
    let (events, mut happens) = unbounded_channel();
    let mut ends = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    let [terminated, interrupted, hung_up] = &mut ends[..] else { return Ok(()) };
    let keys = events.clone();
    thread::spawn(move || read_keys(&keys));
    let mut app = App::default();
    let mut asked = BTreeSet::new();
    let mut every = time::interval(args.interval);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminated.recv() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
            _ = every.tick() => {
                app.found(&args.sockets()?);
                ask_all(&app, args, &mut asked, &events);
            }
            Some(event) = happens.recv() => {
                if take_over(&mut app, event, &mut asked, &events)?.is_some() {
                    return Ok(());
                }
                // What came at once is drawn at once.
                while let Ok(event) = happens.try_recv() {
                    if take_over(&mut app, event, &mut asked, &events)?.is_some() {
                        return Ok(());
                    }
                }
            }
        }
        terminal.draw(|frame| draw(frame, &app))?;
    }
}

/// Marks that the operator leaves.
struct Leaves;

fn take_over(
    app: &mut App,
    event: Happens,
    asked: &mut BTreeSet<PathBuf>,
    events: &Events,
) -> io::Result<Option<Leaves>> {
    match event {
        Happens::Key(key) => match app.key(key) {
            Some(Wanted::Quit) => return Ok(Some(Leaves)),
            Some(Wanted::Act(socket, action)) => act(socket, action, events),
            None => {}
        },
        Happens::Resized => {}
        Happens::NoTerminal(error) => return Err(error),
        Happens::Host(host) => app.host = *host,
        Happens::Looked(socket, look) => {
            asked.remove(&socket);
            app.looked(&socket, *look);
        }
        Happens::Acted(socket, action, said) => app.acted(&socket, action, said),
    }
    Ok(None)
}

/// Looks at the host and at each daemon that has answered, or has failed to, since it was last asked.
fn ask_all(app: &App, args: &TopArgs, asked: &mut BTreeSet<PathBuf>, events: &Events) {
    let (hostd, to) = (args.hostd.clone(), events.clone());
    tokio::spawn(async move { to.send(Happens::Host(Box::new(Host::now(&hostd).await))) });
    for row in app.rows() {
        let socket = row.control_socket.clone();
        if !asked.insert(socket.clone()) {
            continue;
        }
        let (to, asks_guest) = (events.clone(), !args.passive);
        tokio::spawn(async move {
            let seen = look(Daemon::new(&socket), asks_guest).await;
            to.send(Happens::Looked(socket, Box::new(seen)))
        });
    }
}

fn act(socket: PathBuf, action: Action, events: &Events) {
    let to = events.clone();
    tokio::spawn(async move {
        let said = carry_out(Daemon::new(&socket), action).await;
        to.send(Happens::Acted(socket, action, said))
    });
}

/// Reads what the terminal says until nobody listens. It ends with the process.
fn read_keys(to: &Events) {
    loop {
        let happens = match event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Happens::Key(key),
            Ok(Event::Resize(..)) => Happens::Resized,
            Ok(_) => continue,
            Err(error) => {
                let _ = to.send(Happens::NoTerminal(error));
                return;
            }
        };
        if to.send(happens).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::process::Command;
    use std::time::Duration;

    use clap::Parser;
    use terminal_screen::Terminal;

    use crate::args::{Cli, Command as Asked};

    const SOON: Duration = Duration::from_secs(20);
    /// In the environment of the process that panics.
    const PANICS: &str = "TOP_PANICS_WHILE_IT_DRAWS";

    /// This test runs itself again in a terminal, and panics there.
    #[test]
    fn panic_restores_the_terminal() {
        if env::var_os(PANICS).is_some() {
            let cli = Cli::parse_from(["x", "top", "--sockets", "/nonexistent"]);
            let Asked::Top(args) = cli.command else { return };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let top = run(&args, |_, _| panic!("while it draws"));
            let _ = runtime.expect("a runtime").block_on(top);
            return;
        }
        let mut command = Command::new(env::current_exe().expect("this test"));
        command.args(["--exact", "top::screen::tests::panic_restores_the_terminal", "--nocapture"]);
        let mut terminal =
            Terminal::start(command.env(PANICS, "").env("RUST_BACKTRACE", "0"), 100, 40)
                .expect("a terminal");
        let status = terminal.wait(SOON).expect("it ends");
        assert!(!status.success());
        let said = terminal.wait_for(SOON, |text| text.contains("while it draws"));
        said.expect("the message is on the first screen");
        let screen = terminal.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor());
        let written = terminal.recording().bytes();
        assert!(written.windows(8).any(|bytes| bytes == b"\x1b[?1049h"), "it was on the second");
    }
}
