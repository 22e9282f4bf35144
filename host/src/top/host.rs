// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's memory and its pressure.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::sockets::Daemon;

/// Where the kernel says how much memory there is.
const PROC: &str = "/proc";
/// How long hostd may take to say how it is.
const HOSTD_WITHIN: Duration = Duration::from_millis(500);

/// The host's memory. What the kernel does not say is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Host {
    /// Its memory.
    pub(super) total_bytes: Option<u64>,
    /// What programs can use without swapping.
    pub(super) available_bytes: Option<u64>,
    /// Part of the last ten seconds in which some task waited for memory, in percent.
    pub(super) some_percent: Option<f64>,
    /// Part of the last ten seconds in which all tasks waited for memory, in percent.
    pub(super) full_percent: Option<f64>,
    /// What hostd says of itself; `null` if none answers.
    pub(super) hostd: Option<serde_json::Value>,
}

impl Host {
    /// The host now, with what the hostd at this control socket says, if one answers soon.
    pub(super) async fn now(hostd: &Path) -> Self {
        let mut host = Self::read(Path::new(PROC));
        host.hostd = Daemon::new(hostd).within(HOSTD_WITHIN).get("/v1/host").await.ok();
        host
    }

    /// What hostd does; none if none answers.
    pub(super) fn hostd_in_words(&self) -> Option<String> {
        let state = self.hostd.as_ref()?.get("state");
        Some(state.and_then(|state| state.as_str()).unwrap_or("runs").to_owned())
    }

    /// Reads what is below `proc`; a file that cannot be read leaves its values unknown.
    pub(super) fn read(proc: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(proc.join(file)).unwrap_or_default();
        let (meminfo, pressure) = (read("meminfo"), read("pressure/memory"));
        Self {
            total_bytes: kibibytes(&meminfo, "MemTotal:"),
            available_bytes: kibibytes(&meminfo, "MemAvailable:"),
            some_percent: average(&pressure, "some "),
            full_percent: average(&pressure, "full "),
            hostd: None,
        }
    }
}

fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// The average over ten seconds in a line of
/// [pressure stall information](https://docs.kernel.org/accounting/psi.html).
fn average(pressure: &str, line: &str) -> Option<f64> {
    let line = pressure.lines().find_map(|text| text.strip_prefix(line))?;
    line.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_read_and_unknown_without_files() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(Host::read(proc.path()), Host::default());
        let write = |file: &str, text: &str| {
            let path = proc.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n");
        let some = "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\n";
        write(
            "pressure/memory",
            &(some.to_owned() + &some.replace("some avg10=1.50", "full avg10=0.25")),
        );
        let host = Host::read(proc.path());
        assert_eq!((host.total_bytes, host.available_bytes), (Some(2 << 20), Some(1 << 20)));
        assert_eq!((host.some_percent, host.full_percent), (Some(1.5), Some(0.25)));
    }
}
