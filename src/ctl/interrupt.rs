// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ctrl-C while a reclaim is waited for.

use std::io::{self, Write};
use std::process;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::control::client::Client;

/// Has the first SIGINT or SIGTERM end the reclaim that this process waits for, so that it still says
/// what came of it, and the second one end this process.
///
/// # Errors
/// What the kernel says; the signals end the process then, and the daemon lets go as well.
pub(super) fn lets_go(client: Client) -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // The connection of the reclaim is busy: this is another one.
        let first = signals.wait();
        let said = "interrupted: the guest is let go; once more ends without waiting for it";
        let _ = writeln!(io::stderr(), "vhost-device-balloon ctl: {said}");
        let refused = client.ask("DELETE", "/v1/reclaim", None).is_err();
        let last = if refused { first } else { signals.wait() };
        process::exit(128 + last.map_or(libc::SIGINT, |signal| signal as i32));
    })?;
    Ok(())
}
