// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's memory and CPU time as the host sees them, and curves over time.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Bytes allocated to a memfd or any other file. A discard lowers them.
///
/// # Errors
/// When `fstat` fails.
pub fn resident_bytes(memory: &File) -> Result<u64> {
    let metadata = memory.metadata().context("fstat of the guest's memory")?;
    // st_blocks counts in 512 bytes, whatever the file system's block size.
    Ok(metadata.blocks().saturating_mul(512))
}

/// The proportional set size of a process in bytes: its memory, each shared
/// page divided by the number of processes that map it.
///
/// # Errors
/// When the process is gone or another user's.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    memory_of(pid, "Pss:")
}

/// Shared memory that a process has mapped in transparent huge pages, in bytes.
///
/// # Errors
/// When the process is gone or another user's.
pub fn shmem_huge_bytes(pid: u32) -> Result<u64> {
    memory_of(pid, "ShmemPmdMapped:")
}

fn memory_of(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_field(&text, field).with_context(|| format!("{path} has no line {field}\n{text}"))
}

fn parse_field(smaps_rollup: &str, field: &str) -> Option<u64> {
    let value = smaps_rollup.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// CPU time of all threads that a process has, in user mode and in the kernel.
///
/// # Errors
/// When the process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut time = Duration::ZERO;
    for task in fs::read_dir(&tasks).with_context(|| format!("listing {tasks}"))? {
        let file = task.with_context(|| format!("listing {tasks}"))?.path().join("schedstat");
        // A thread that has ended meanwhile is none any more.
        if let Ok(text) = fs::read_to_string(file) {
            time += parse_schedstat(&text)?;
        }
    }
    Ok(time)
}

/// CPU time of all processes of a process group, such as user-mode Linux with its helpers.
///
/// # Errors
/// When the group's leader is gone.
pub fn group_cpu_time(leader: u32) -> Result<Duration> {
    let mut time = cpu_time(leader)?;
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let name = entry.context("listing /proc")?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != leader) else { continue };
        // A process that has ended meanwhile has no file any more.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `PID (NAME) STATE PPID PGRP …`, where the name may hold anything.
        let group = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(2));
        if group.and_then(|group| group.parse().ok()) == Some(leader) {
            time += cpu_time(pid).unwrap_or_default();
        }
    }
    Ok(time)
}

/// CPU time of a process's main thread.
///
/// # Errors
/// When the process is gone.
pub fn main_thread_cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/schedstat");
    parse_schedstat(&fs::read_to_string(&path).with_context(|| format!("reading {path}"))?)
}

/// CPU time of the calling thread.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn thread_cpu_time() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    parse_schedstat(&fs::read_to_string(path).with_context(|| format!("reading {path}"))?)
}

/// The first number of `schedstat` is time on a CPU in nanoseconds.
fn parse_schedstat(text: &str) -> Result<Duration> {
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Ok(Duration::from_nanos(first.with_context(|| format!("schedstat is {text:?}"))?))
}

/// Calls `condition` every `period` until it returns a value. For conditions that the kernel has no
/// event for.
///
/// # Errors
/// When `deadline` has passed; with the last reason of `condition`.
pub fn wait_until<T>(
    deadline: Duration,
    period: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let why = match condition() {
            Ok(value) => return Ok(value),
            Err(why) => why,
        };
        if start.elapsed() >= deadline {
            bail!("not within {deadline:?}: {why}");
        }
        thread::sleep(period);
    }
}

/// Leaves a socket at `path` without a listener, as a killed process does.
///
/// A process that another thread is just starting has a copy of the listener until it runs its own
/// program, so this waits until connections are refused.
///
/// # Errors
/// When there can be no socket, or it does not die.
pub fn leave_dead_socket(path: &Path) -> Result<()> {
    drop(UnixListener::bind(path).with_context(|| format!("cannot bind {}", path.display()))?);
    wait_until_refused(path)
}

/// Waits until the socket at `path` refuses connections: see [`leave_dead_socket`].
///
/// # Errors
/// When it still accepts them after 20 s.
pub fn wait_until_refused(path: &Path) -> Result<()> {
    wait_until(Duration::from_secs(20), Duration::from_millis(1), || {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sample {
    /// Seconds since the sampler started.
    pub seconds: f64,
    /// What the guest says that it uses, in bytes; none if it was not asked or did not answer.
    pub guest_used_bytes: Option<u64>,
    /// What the host holds for it, in bytes.
    pub host_resident_bytes: u64,
}

/// Records a curve from a thread of its own.
///
/// Dropping it ends the thread as [`Sampler::stop`] does.
pub struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sampler {
    /// Starts to take a sample every `period`.
    ///
    /// `memory` is the guest's memfd. `guest_used_bytes` asks the guest; it returns none where
    /// that is impossible, and may take its time: samples are then that much further apart.
    pub fn start(
        period: Duration,
        memory: File,
        mut guest_used_bytes: impl FnMut() -> Option<u64> + Send + 'static,
    ) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = channel::<()>();
        let thread = {
            let samples = Arc::clone(&samples);
            thread::spawn(move || {
                let start = Instant::now();
                let mut next = start;
                loop {
                    let guest_used_bytes = guest_used_bytes();
                    // Last, so that the time belongs to this value.
                    let host_resident_bytes = resident_bytes(&memory)?;
                    let seconds = start.elapsed().as_secs_f64();
                    lock(&samples).push(Sample { seconds, guest_used_bytes, host_resident_bytes });
                    next = (next + period).max(Instant::now());
                    match stopped.recv_timeout(next.saturating_duration_since(Instant::now())) {
                        Err(RecvTimeoutError::Timeout) => {}
                        Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                }
            })
        };
        Self { samples, stop: Some(stop), thread: Some(thread) }
    }

    /// A copy of the curve so far.
    pub fn samples(&self) -> Vec<Sample> {
        lock(&self.samples).clone()
    }

    /// Ends the recording and returns the curve.
    ///
    /// # Errors
    /// When the memory could not be asked, or the closure panicked.
    pub fn stop(mut self) -> Result<Vec<Sample>> {
        self.join()?;
        Ok(std::mem::take(&mut *lock(&self.samples)))
    }

    fn join(&mut self) -> Result<()> {
        self.stop.take();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => bail!("the sampler's thread panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // A caller that needs the error calls `stop`.
        let _ = self.join();
    }
}

fn lock(samples: &Mutex<Vec<Sample>>) -> MutexGuard<'_, Vec<Sample>> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long host memory has to stay without falling for the next fall to count as another pass.
/// Linux starts a pass no sooner than two seconds after the one before has ended.
const PLATEAU_SECONDS: f64 = 1.0;

/// How many reporting passes a curve shows: bursts in which host memory falls, with plateaus of at
/// least a second between them.
///
/// The samples should be some tens of milliseconds apart, and nothing but reports should make the
/// memory fall.
pub fn passes(samples: &[Sample]) -> usize {
    let mut passes = 0;
    let mut last_fall: Option<f64> = None;
    for pair in samples.windows(2) {
        let [before, after] = pair else { continue };
        if after.host_resident_bytes >= before.host_resident_bytes {
            continue;
        }
        // From the end of the last fall to the start of this one.
        if last_fall.is_none_or(|end| before.seconds - end >= PLATEAU_SECONDS) {
            passes += 1;
        }
        last_fall = Some(after.seconds);
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::os::unix::fs::FileExt;

    fn memfd() -> File {
        memfd_create("test", MemfdFlags::CLOEXEC).unwrap().into()
    }

    #[test]
    fn work_takes_cpu_time() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let start = Instant::now();
        while cpu_time(pid).unwrap() < before + Duration::from_millis(20) {
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        assert!(main_thread_cpu_time(pid).unwrap() <= cpu_time(pid).unwrap());
        assert!(cpu_time(u32::MAX).is_err());
    }

    #[test]
    fn resident_is_what_was_written() {
        let file = memfd();
        file.set_len(1 << 20).unwrap();
        assert_eq!(resident_bytes(&file).unwrap(), 0);
        file.write_all_at(&[1; 8192], 65536).unwrap();
        assert_eq!(resident_bytes(&file).unwrap(), 8192);
    }

    #[test]
    fn sizes_of_a_process_are_in_bytes() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 12 kB\nPss:      1032 kB\n";
        assert_eq!(parse_field(text, "Pss:"), Some(1032 * 1024));
        assert_eq!(parse_field("Rss: 12 kB\n", "Pss:"), None);
        assert!(pss_bytes(std::process::id()).unwrap() > 0);
        assert!(shmem_huge_bytes(std::process::id()).is_ok());
    }

    #[test]
    fn waiting_ends_with_the_value_or_the_last_reason() {
        let mut left = 3;
        let value = wait_until(Duration::from_secs(60), Duration::from_millis(1), || {
            left -= 1;
            if left == 0 { Ok("there") } else { Err(format!("{left} left")) }
        });
        assert_eq!(value.unwrap(), "there");
        let error = wait_until(Duration::ZERO, Duration::ZERO, || Err::<(), _>("never".to_owned()));
        assert!(error.unwrap_err().to_string().contains("never"));
    }

    #[test]
    fn a_sampler_records_until_it_is_stopped() {
        let file = memfd();
        let mut asked = 0;
        let sampler =
            Sampler::start(Duration::from_millis(1), file.try_clone().unwrap(), move || {
                asked += 1;
                Some(asked)
            });
        file.write_all_at(&[1; 4096], 0).unwrap();
        wait_until(Duration::from_secs(60), Duration::from_millis(1), || {
            let last = sampler.samples().last().copied();
            last.filter(|sample| sample.host_resident_bytes == 4096).ok_or(format!("{last:?}"))
        })
        .unwrap();
        let samples = sampler.stop().unwrap();
        assert!(samples.windows(2).all(|pair| pair[0].seconds < pair[1].seconds));
        assert_eq!(samples[0].guest_used_bytes, Some(1));
    }

    fn curve(points: &[(f64, u64)]) -> Vec<Sample> {
        let sample = |&(seconds, host_resident_bytes)| Sample {
            seconds,
            guest_used_bytes: None,
            host_resident_bytes,
        };
        points.iter().map(sample).collect()
    }

    #[test]
    fn passes_are_bursts_between_plateaus() {
        assert_eq!(passes(&[]), 0);
        assert_eq!(passes(&curve(&[(0.0, 5), (1.0, 9), (2.0, 9)])), 0);
        // Two steps in quick succession are one pass; after two seconds comes the next.
        let two = [(0.0, 9), (0.1, 8), (0.2, 8), (0.5, 7), (0.6, 7), (2.6, 7), (2.7, 4), (5.0, 4)];
        assert_eq!(passes(&curve(&two)), 2);
        // A slow decline without a plateau is one.
        assert_eq!(passes(&curve(&[(0.0, 9), (0.9, 8), (1.8, 7), (2.7, 6)])), 1);
    }
}
