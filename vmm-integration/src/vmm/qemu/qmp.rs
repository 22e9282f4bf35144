// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's own control connection.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qapi::{Command, Qmp, Stream, qmp};
use serde_json::json;

/// QEMU answers at once unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A client of QEMU's machine protocol (QMP). Threads may share it; commands run one at a time.
pub struct QmpClient {
    connection: Mutex<Qmp<Stream<BufReader<UnixStream>, UnixStream>>>,
}

impl QmpClient {
    /// Greets QEMU and gets ready for commands.
    pub(super) fn new(connection: UnixStream) -> Result<Self> {
        connection.set_read_timeout(Some(TIMEOUT)).context("setting QMP's timeout")?;
        let mut answers = BufReader::new(connection.try_clone().context("copying QMP's socket")?);
        // The crate panics where QEMU hangs up without a greeting.
        let greeting = answers.fill_buf().context("waiting for QMP's greeting")?;
        ensure!(!greeting.is_empty(), "QEMU hung up without a greeting over QMP");
        let mut qmp = Qmp::new(Stream::new(answers, connection));
        qmp.handshake().context("QMP's handshake")?;
        Ok(Self { connection: Mutex::new(qmp) })
    }

    /// Runs any command of [`qapi::qmp`] (re-exported as [`super::qapi`]).
    ///
    /// # Errors
    /// When QEMU refuses it, is gone, or does not answer.
    pub fn execute<C: Command>(&self, command: &C) -> Result<C::Ok> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let result = connection.execute(command);
        // Events are not used and must not pile up.
        connection.events();
        result.with_context(|| format!("QMP command {}", C::NAME))
    }

    /// Whether the guest's CPUs run.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn is_guest_running(&self) -> Result<bool> {
        Ok(self.execute(&qmp::query_status {})?.running)
    }

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn stop(&self) -> Result<()> {
        self.execute(&qmp::stop {}).map(drop)
    }

    /// Lets the guest's CPUs go on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn cont(&self) -> Result<()> {
        self.execute(&qmp::cont {}).map(drop)
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
        let memory: qmp::ObjectOptions = serde_json::from_value(memory)?;
        self.execute(&qmp::object_add(memory))?;
        let mut dimm = json!({ "driver": "pc-dimm", "memdev": id });
        if let Some(address) = address {
            dimm["addr"] = address.into();
        }
        let dimm: qmp::device_add = serde_json::from_value(dimm)?;
        self.execute(&dimm).map(drop)
    }

    /// Asks the guest to have so many bytes of a virtio-mem device plugged.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn request_memory(&self, id: &str, bytes: u64) -> Result<()> {
        let set = json!({
            "path": format!("/machine/peripheral/{id}"), "property": "requested-size", "value": bytes,
        });
        let set: qmp::qom_set = serde_json::from_value(set)?;
        self.execute(&set).map(drop)
    }

    /// Ends QEMU at once, whatever the guest does.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn quit(&self) -> Result<()> {
        self.execute(&qmp::quit {}).map(drop)
    }
}
