// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `top`: all guests of a host on one screen.
//!
//! [`run`] waits for keys, signals, the time and answers, and nothing else: each daemon is asked by a task
//! of its own, so that one that hangs costs its own row alone.

mod act;
mod app;
mod columns;
mod draw;
mod host;
mod look;
mod plain;
mod row;
mod screen;
mod text;

use std::io::{self, IsTerminal, Write};

use tokio::time;

use crate::args::TopArgs;
use crate::sockets::{self, Daemon};
use app::App;
use host::Host;
use look::look;

/// Runs until the operator leaves, or has what was asked for.
///
/// # Errors
/// If a directory of sockets cannot be read, or there is no terminal to draw on.
pub(crate) async fn run(args: TopArgs) -> io::Result<()> {
    if args.once || args.json {
        return once(&args).await;
    }
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let text =
            "top draws on a terminal (standard input or output is none): use --once or --json";
        return Err(io::Error::other(text));
    }
    screen::run(&args, draw::draw).await
}

/// `--once`
async fn once(args: &TopArgs) -> io::Result<()> {
    let mut app = App::default();
    for is_second in [false, true] {
        if is_second {
            time::sleep(args.interval).await;
        }
        let sockets = args.sockets()?;
        app.found(&sockets);
        let daemons = sockets.into_iter().map(Daemon::new).collect();
        let asks_guest = !args.passive;
        for (daemon, seen) in sockets::each(daemons, move |daemon| look(daemon, asks_guest)).await {
            app.looked(daemon.path(), seen);
        }
    }
    app.host = Host::now(&args.hostd).await;
    let text = if args.json { plain::json(&app) } else { plain::table(&app) };
    io::stdout().write_all(text.as_bytes())
}
