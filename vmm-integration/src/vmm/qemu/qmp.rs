// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's own control connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// QEMU answers at once unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A client of QEMU's machine protocol (QMP). Threads may share it; commands run one at a time.
///
/// It uses no crate of the whole schema: such a crate takes longer to compile than any other here.
pub struct QmpClient {
    connection: Mutex<BufReader<UnixStream>>,
}

impl QmpClient {
    /// Greets QEMU and gets ready for commands.
    pub(super) fn new(connection: UnixStream) -> Result<Self> {
        connection.set_read_timeout(Some(TIMEOUT)).context("setting QMP's timeout")?;
        let mut answers = BufReader::new(connection);
        let greeting = read(&mut answers).context("waiting for QMP's greeting")?;
        ensure!(greeting.get("QMP").is_some(), "no greeting over QMP (got {greeting})");
        let client = Self { connection: Mutex::new(answers) };
        client.execute("qmp_capabilities", json!({})).context("QMP's handshake")?;
        Ok(client)
    }

    /// Runs a command of the [reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html),
    /// and tells what it returns.
    ///
    /// # Errors
    /// When QEMU refuses it, is gone, or does not answer.
    #[expect(clippy::needless_pass_by_value, reason = "the arguments are built for the call")]
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        execute(&mut connection, command, &arguments)
            .with_context(|| format!("QMP command {command}"))
    }

    /// Whether the guest's CPUs run.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn is_guest_running(&self) -> Result<bool> {
        let status = self.execute("query-status", json!({}))?;
        let running = status["running"].as_bool();
        running.with_context(|| format!("QMP command query-status: nothing runs (got {status})"))
    }

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn stop(&self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets the guest's CPUs go on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn cont(&self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Resets the guest, which boots again.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn system_reset(&self) -> Result<()> {
        self.execute("system_reset", json!({})).map(drop)
    }

    /// Plugs a DIMM of shared memory in, at a guest physical address or where QEMU puts it. The machine needs a
    /// slot for it (`-m slots=1,maxmem=...`).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn plug_memory(&self, id: &str, bytes: u64, address: Option<u64>) -> Result<()> {
        let memory = json!({
            "qom-type": "memory-backend-memfd", "id": id, "size": bytes, "share": true,
        });
        self.execute("object-add", memory)?;
        let mut dimm = json!({ "driver": "pc-dimm", "memdev": id });
        if let Some(address) = address {
            dimm["addr"] = address.into();
        }
        self.execute("device_add", dimm).map(drop)
    }

    /// Asks the guest to have so many bytes of a virtio-mem device plugged.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn request_memory(&self, id: &str, bytes: u64) -> Result<()> {
        let set = json!({
            "path": format!("/machine/peripheral/{id}"), "property": "requested-size", "value": bytes,
        });
        self.execute("qom-set", set).map(drop)
    }

    /// Ends QEMU at once, whatever the guest does.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn quit(&self) -> Result<()> {
        self.execute("quit", json!({})).map(drop)
    }
}

fn execute(
    connection: &mut BufReader<UnixStream>,
    command: &str,
    arguments: &Value,
) -> Result<Value> {
    let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
    connection.get_mut().write_all(line.as_bytes())?;
    loop {
        let mut answer = read(connection)?;
        if let Some(error) = answer.get("error") {
            bail!("{}: {}", said(&error["class"]), said(&error["desc"]));
        }
        if let Some(returned) = answer.get_mut("return") {
            return Ok(returned.take());
        }
        // Events are not used.
        ensure!(answer.get("event").is_some(), "no answer (got {answer})");
    }
}

fn said(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The next line of QEMU.
fn read(connection: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    ensure!(connection.read_line(&mut line)? > 0, "QEMU hung up");
    serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A client of a QEMU that says these lines, whatever is asked, and then hangs up.
    fn client(lines: &'static str) -> Result<QmpClient> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let qemu = thread::spawn(move || {
            theirs.write_all(lines.as_bytes()).expect("the client reads");
            theirs.shutdown(std::net::Shutdown::Write).expect("a socket");
            let mut asked = String::new();
            // It ends with the client.
            std::io::Read::read_to_string(&mut theirs, &mut asked).map(|_| asked)
        });
        let client = QmpClient::new(ours);
        // Nothing that was asked is left behind by a client that failed.
        if client.is_err() {
            qemu.join().expect("it reads").expect("lines");
        }
        client
    }

    const READY: &str = "{\"QMP\": {}}\n{\"return\": {}}\n";

    #[test]
    fn answer_is_returned_past_events() {
        let lines = "{\"QMP\": {}}\n{\"return\": {}}\n{\"event\": \"STOP\"}\n\
                     {\"return\": {\"running\": true}}\n";
        assert!(client(lines).expect("a client").is_guest_running().expect("an answer"));
    }

    #[test]
    fn refusal_names_the_command_and_the_reason() {
        let lines = "{\"QMP\": {}}\n{\"return\": {}}\n\
                     {\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}}\n";
        let error = client(lines).expect("a client").cont().expect_err("it is refused");
        assert_eq!(format!("{error:#}"), "QMP command cont: GenericError: no such device");
    }

    #[test]
    fn qemu_that_hangs_up_is_an_error() {
        let error = client("").err().expect("no greeting");
        assert_eq!(format!("{error:#}"), "waiting for QMP's greeting: QEMU hung up");
        let error = client(READY).expect("a client").stop().expect_err("no answer");
        assert_eq!(format!("{error:#}"), "QMP command stop: QEMU hung up");
    }
}
