// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Prometheus that scrapes hostd every second.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use vmm_integration::fetch::prometheus::Prometheus;
use vmm_integration::measure::host::wait_until;

use super::http::{encoded, get};
use crate::cargo;

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Between two scrapes, in seconds.
pub(super) const SCRAPE_SECONDS: u64 = 1;

/// A time series: its labels and its points, in seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) labels: Value,
    pub(super) points: Vec<(f64, f64)>,
}

/// The server. It ends with this.
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    /// Starts it with the project's alert rules, and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub(super) fn start(metrics: &SocketAddr) -> Result<Self> {
        let tools = Prometheus::ensure(&mut |_| ())?;
        let folder = tempfile::tempdir()?;
        // A port that is free now; nothing else takes ports meanwhile.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let rules = cargo::root().join("packaging/prometheus/alerts.yml");
        let file = folder.path().join("prometheus.yml");
        let configuration = serde_json::json!({
            "global": {"scrape_interval": format!("{SCRAPE_SECONDS}s"), "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [
                {"job_name": "balloon", "static_configs": [{"targets": [metrics.to_string()]}]},
            ],
        });
        // JSON is YAML.
        fs::write(&file, configuration.to_string())?;
        let log = fs::File::create(folder.path().join("log"))?;
        let mut command = tools.server.command();
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot start Prometheus")?;
        let server = Self { child, address, _folder: folder };
        let ready = || get(address, "/-/ready").map(drop).map_err(|error| error.to_string());
        wait_until(STARTS_WITHIN, LOOK_EVERY, ready).context("Prometheus does not serve")?;
        Ok(server)
    }

    /// The series of an expression over the last seconds.
    ///
    /// # Errors
    /// If it is refused.
    pub(super) fn range(&self, expression: &str, last: Duration) -> Result<Vec<Series>> {
        let end = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        let start = end - last.as_secs_f64();
        let query = encoded(expression);
        let path = format!("/api/v1/query_range?query={query}&start={start}&end={end}&step=1");
        let answer: Value = serde_json::from_str(&get(self.address, &path)?)?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        let Some(result) = answer["data"]["result"].as_array() else {
            bail!("{expression}: {answer}")
        };
        result.iter().map(series).collect()
    }
}

fn series(value: &Value) -> Result<Series> {
    let points = value["values"].as_array().context("a series without values")?;
    let point = |point: &Value| {
        let value: f64 = point[1].as_str()?.parse().ok()?;
        Some((point[0].as_f64()?, value)).filter(|_| value.is_finite())
    };
    let points = points.iter().filter_map(point).collect();
    Ok(Series { labels: value["metric"].clone(), points })
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
