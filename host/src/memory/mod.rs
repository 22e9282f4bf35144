// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of this host, or of a control group: how much there is, how much is available, and how
//! long tasks wait for it.

mod pressure;
mod trigger;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pressure::some_avg10;
pub(crate) use trigger::Trigger;

/// What there is now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MemorySample {
    /// Bytes of memory, or the limit of the control group if that is smaller.
    pub(crate) total_bytes: u64,
    /// Bytes of it that can be had without swapping.
    pub(crate) available_bytes: u64,
    /// Share of the last 10 seconds, in percent, in which some task waited for memory; none if the kernel
    /// does not say (`CONFIG_PSI`, `psi=1`).
    pub(crate) pressure_percent: Option<f64>,
}

/// Why nothing is known.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub(crate) struct MemoryError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where it is read.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    proc: PathBuf,
    cgroup: Option<PathBuf>,
}

impl Memory {
    /// That of this host, and of a control group (cgroup v2) in which guests and page cache count.
    pub(crate) fn new(cgroup: Option<PathBuf>) -> Self {
        Self { proc: PathBuf::from("/proc"), cgroup }
    }

    /// The file of [PSI](https://docs.kernel.org/accounting/psi.html).
    pub(crate) fn pressure_file(&self) -> PathBuf {
        match &self.cgroup {
            Some(cgroup) => cgroup.join("memory.pressure"),
            None => self.proc.join("pressure/memory"),
        }
    }

    /// Reads what there is now.
    ///
    /// # Errors
    /// If a file is not there or has no such number.
    pub(crate) fn sample(&self) -> Result<MemorySample, MemoryError> {
        let meminfo = self.proc.join("meminfo");
        let text = read(&meminfo)?;
        let kib = |name| number(&meminfo, &text, name).map(|kib| kib.saturating_mul(1024));
        let mut sample = MemorySample {
            total_bytes: kib("MemTotal:")?,
            available_bytes: kib("MemAvailable:")?,
            pressure_percent: read(&self.pressure_file()).ok().and_then(|text| some_avg10(&text)),
        };
        if let Some(cgroup) = &self.cgroup {
            sample = within(cgroup, sample)?;
        }
        Ok(sample)
    }
}

/// The same, with the limit of a control group.
fn within(cgroup: &Path, host: MemorySample) -> Result<MemorySample, MemoryError> {
    let current = cgroup.join("memory.current");
    let used = number(&current, &format!("current {}", read(&current)?), "current")?;
    let limit = cgroup.join("memory.max");
    let limit_text = read(&limit)?;
    let total_bytes = match limit_text.trim() {
        "max" => host.total_bytes,
        text => number(&limit, &format!("max {text}"), "max")?.min(host.total_bytes),
    };
    let stat = cgroup.join("memory.stat");
    // Page cache that goes first. Guests' memory is shared memory, which is not in it.
    let cache = number(&stat, &read(&stat)?, "inactive_file")?;
    let available = total_bytes.saturating_sub(used.saturating_sub(cache));
    Ok(MemorySample {
        total_bytes,
        available_bytes: available.min(host.available_bytes),
        pressure_percent: host.pressure_percent,
    })
}

fn read(path: &Path) -> Result<String, MemoryError> {
    fs::read_to_string(path).map_err(|source| MemoryError { path: path.to_owned(), source })
}

/// The number behind `name` at the beginning of a line.
fn number(path: &Path, text: &str, name: &str) -> Result<u64, MemoryError> {
    let words = text.lines().map(str::split_whitespace);
    let found = words.filter_map(|mut words| Some((words.next()?, words.next()?)));
    let mut values = found.filter(|(word, _)| *word == name).map(|(_, value)| value.parse());
    let error = |text: String| {
        let source = io::Error::new(io::ErrorKind::InvalidData, text);
        MemoryError { path: path.to_owned(), source }
    };
    match values.next() {
        Some(Ok(value)) => Ok(value),
        _ => Err(error(format!("expected a number behind {name:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    const HOST: [(&str, &str); 2] = [
        ("meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n"),
        ("pressure/memory", "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.5"),
    ];

    #[test]
    fn host_is_what_proc_says() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &HOST);
        let memory = Memory { proc: dir.path().to_owned(), cgroup: None };
        let sample = memory.sample().unwrap();
        assert_eq!((sample.total_bytes, sample.available_bytes), (1000 << 10, 400 << 10));
        assert_eq!(sample.pressure_percent, Some(1.5));
        fs::remove_file(dir.path().join("pressure/memory")).unwrap();
        assert_eq!(memory.sample().unwrap().pressure_percent, None);
        write(dir.path(), &[("meminfo", "MemTotal: 1000 kB\n")]);
        assert!(memory.sample().is_err());
    }

    #[test]
    fn limit_of_a_control_group_counts() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &HOST);
        let group = dir.path().join("group");
        let of = |max, current, cache: u64| {
            let stat = format!("anon 5\ninactive_file {cache}\n");
            let files =
                [("memory.max", max), ("memory.current", current), ("memory.stat", stat.as_str())];
            write(&group, &files);
            write(&group, &[("memory.pressure", "some avg10=9.00 avg60=0 avg300=0 total=1\n")]);
            let cgroup = Some(group.clone());
            let sample = Memory { proc: dir.path().to_owned(), cgroup }.sample().unwrap();
            assert_eq!(sample.pressure_percent, Some(9.0));
            (sample.total_bytes, sample.available_bytes)
        };
        assert_eq!(of("102400\n", "92400\n", 400), (102_400, 10_400));
        assert_eq!(of("102400\n", "192400\n", 400), (102_400, 0));
        assert_eq!(of("max\n", "0\n", 0), (1000 << 10, 400 << 10));
        assert_eq!(of("18446744073709551615", "0\n", 1), (1000 << 10, 400 << 10));
    }

    #[test]
    fn this_host_has_memory() {
        let sample = Memory::new(None).sample().unwrap();
        assert!(0 < sample.available_bytes && sample.available_bytes <= sample.total_bytes);
    }
}
