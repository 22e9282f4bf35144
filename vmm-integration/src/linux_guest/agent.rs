// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's side of the conversation with the guest's init.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use guest_agent::faulting::{Faulted, FaultingPlan};
use guest_agent::race::{MemoryBlocks, RacePlan, RaceReport, Task};
use guest_agent::{
    BalloonDevice, Command, Hello, MAX_LINE_BYTES, MemInfo, Outcome, ProcessEnd, Reply, Request,
    Response, Verified,
};

/// Name of the balloon driver's module.
pub(crate) const BALLOON_DRIVER: &str = "virtio_balloon";

/// For a command that only asks or sets something. Generous: an emulated guest on a busy machine.
const QUICK: Duration = Duration::from_secs(60);
/// For a command that touches memory or moves it about.
const LONG: Duration = Duration::from_secs(600);

/// A client of the agent. Threads may share it and call at the same time: each call waits for its
/// own answer only.
///
/// Every method fails when the guest is gone, does not answer in time, or says that it could not
/// do what was asked; then the error's root is a [`guest_agent::Failure`], which `downcast_ref`
/// gives, with the name of the guest's error.
pub struct AgentClient {
    requests: Mutex<UnixStream>,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    reader: Option<JoinHandle<()>>,
}

/// The callers that wait, by request; none after the connection has closed.
struct Waiting(Mutex<Option<HashMap<u64, Sender<Outcome>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Sender<Outcome>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentClient {
    /// Takes the connection to the port. Nothing is sent until a method is called.
    pub(crate) fn new(connection: UnixStream) -> Result<Self> {
        let answers = connection.try_clone().context("copying the agent's socket")?;
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let reader = {
            let waiting = Arc::clone(&waiting);
            thread::spawn(move || {
                let why = read_answers(answers, &waiting);
                if let Err(error) = why {
                    eprintln!("guest agent: {error:#}");
                }
                // Drops the senders, which wakes all waiting callers.
                waiting.lock().take();
            })
        };
        Ok(Self {
            requests: Mutex::new(connection),
            waiting,
            next_id: AtomicU64::new(1),
            reader: Some(reader),
        })
    }

    /// Sends any command and waits for its answer, at most `timeout`.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn call(&self, command: Command, timeout: Duration) -> Result<Reply> {
        let what = format!("asking the guest for {command:?}");
        self.exchange(command, timeout).context(what)
    }

    fn exchange(&self, command: Command, timeout: Duration) -> Result<Reply> {
        let gone = || anyhow!("the guest is gone: its VMM has ended or closed the connection");
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { id, command })?;
        line.push(b'\n');
        ensure!(line.len() <= MAX_LINE_BYTES, "the request is longer than {MAX_LINE_BYTES} bytes");

        let (sender, answer) = channel();
        self.waiting.lock().as_mut().ok_or_else(gone)?.insert(id, sender);
        let sent = self.requests.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        let outcome = match sent {
            Ok(()) => answer.recv_timeout(timeout),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        if let Some(waiting) = self.waiting.lock().as_mut() {
            waiting.remove(&id);
        }
        match outcome {
            Ok(Outcome::Ok(reply)) => Ok(reply),
            Ok(Outcome::Error(failure)) => Err(failure.into()),
            Err(RecvTimeoutError::Timeout) => bail!("no answer within {timeout:?}"),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    /// Whether nothing will ever be answered: the connection is closed.
    pub(crate) fn is_gone(&self) -> bool {
        self.waiting.lock().is_none()
    }

    fn done(&self, command: Command, timeout: Duration) -> Result<()> {
        match self.call(command, timeout)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for the guest's kernel release, uptime and page size.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn hello(&self) -> Result<Hello> {
        self.hello_within(QUICK)
    }

    pub(crate) fn hello_within(&self, timeout: Duration) -> Result<Hello> {
        match self.call(Command::Hello, timeout)? {
            Reply::Hello(hello) => Ok(hello),
            other => Err(unexpected(&other)),
        }
    }

    /// Loads a module of the initramfs; `params` as for modprobe.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn load_module(&self, name: &str, params: &str) -> Result<()> {
        self.done(Command::LoadModule { name: name.to_owned(), params: params.to_owned() }, LONG)
    }

    /// Unloads a module.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn unload_module(&self, name: &str) -> Result<()> {
        self.done(Command::UnloadModule { name: name.to_owned() }, LONG)
    }

    /// Unloads the balloon driver; a driver that is not loaded is no error.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn unload_balloon_driver(&self) -> Result<()> {
        let Err(error) = self.unload_module(BALLOON_DRIVER) else { return Ok(()) };
        let failure = error.downcast_ref::<guest_agent::Failure>();
        match failure.and_then(|failure| failure.errno.as_deref()) {
            Some("ENOENT") => Ok(()),
            _ => Err(error),
        }
    }

    /// Allocates memory as `id` and fills it with the pattern of `generation`.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when it would not fit in the guest's available memory.
    pub fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()> {
        self.done(Command::Alloc { id, bytes, generation }, LONG)
    }

    /// Overwrites an allocation with the pattern of another generation.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn rewrite(&self, id: u32, generation: u16) -> Result<()> {
        self.done(Command::Rewrite { id, generation }, LONG)
    }

    /// Compares an allocation with its pattern and returns what was found.
    ///
    /// # Errors
    /// See [`AgentClient`]. A difference is no error here; see [`Self::expect_intact`].
    pub fn verify(&self, id: u32) -> Result<Verified> {
        match self.call(Command::Verify { id }, LONG)? {
            Reply::Verified(verified) => Ok(verified),
            other => Err(unexpected(&other)),
        }
    }

    /// Compares an allocation with its pattern and returns how many bytes were compared.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when a single word differs.
    pub fn expect_intact(&self, id: u32) -> Result<u64> {
        let verified = self.verify(id)?;
        if let Some(first) = verified.first {
            bail!(
                "allocation {id} was damaged: {} of {} words differ, the first: {first}",
                verified.mismatches,
                verified.checked_bytes / 8
            );
        }
        Ok(verified.checked_bytes)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn free(&self, id: u32) -> Result<()> {
        self.done(Command::Free { id }, LONG)
    }

    /// Runs a process that fills memory and checks it, whether or not there is enough memory; returns
    /// how the process ended.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when the memory does not hold what was written to it.
    pub fn use_memory(&self, bytes: u64) -> Result<ProcessEnd> {
        match self.call(Command::UseMemory { bytes }, LONG)? {
            Reply::ProcessEnd(end) => Ok(end),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets programs fault memory in until their time is over.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when it would not fit in the guest's available memory.
    pub fn fault(&self, plan: FaultingPlan) -> Result<Faulted> {
        let time = LONG + Duration::from_millis(plan.milliseconds);
        match self.call(Command::Fault { plan }, time)? {
            Reply::Faulted(faulted) => Ok(faulted),
            other => Err(unexpected(&other)),
        }
    }

    /// The guest's `/proc/meminfo`, in bytes.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn meminfo(&self) -> Result<MemInfo> {
        match self.call(Command::MemInfo, QUICK)? {
            Reply::MemInfo(meminfo) => Ok(meminfo),
            other => Err(unexpected(&other)),
        }
    }

    /// Contents of a file in the guest.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn read_file(&self, path: &str) -> Result<String> {
        match self.call(Command::ReadFile { path: path.to_owned() }, QUICK)? {
            Reply::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes to a file in the guest with one call, as for a setting in sysfs.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn write_file(&self, path: &str, text: &str) -> Result<()> {
        self.done(Command::WriteFile { path: path.to_owned(), text: text.to_owned() }, LONG)
    }

    /// The guest's view of its balloon device; none if it has no such device.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn balloon(&self) -> Result<Option<BalloonDevice>> {
        match self.call(Command::Balloon, QUICK)? {
            Reply::Balloon(device) => Ok(device),
            other => Err(unexpected(&other)),
        }
    }

    /// The guest's memory blocks.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when its kernel cannot take memory offline.
    pub fn memory_blocks(&self) -> Result<MemoryBlocks> {
        match self.call(Command::MemoryBlocks, QUICK)? {
            Reply::MemoryBlocks(blocks) => Ok(blocks),
            other => Err(unexpected(&other)),
        }
    }

    /// The guest's tasks in a state, such as `D`.
    ///
    /// # Errors
    /// See [`AgentClient`].
    pub fn tasks(&self, state: char) -> Result<Vec<Task>> {
        match self.call(Command::Tasks { state }, QUICK)? {
            Reply::Tasks(tasks) => Ok(tasks),
            other => Err(unexpected(&other)),
        }
    }

    /// Begins a race in the guest and returns while it runs.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when one is running.
    pub fn start_race(&self, plan: &RacePlan) -> Result<()> {
        self.done(Command::StartRace { plan: plan.clone() }, QUICK)
    }

    /// Returns the state of the race. With `stop` the race ends.
    ///
    /// # Errors
    /// See [`AgentClient`]; also when there was none.
    pub fn race(&self, stop: bool) -> Result<RaceReport> {
        match self.call(Command::Race { stop }, QUICK)? {
            Reply::Race(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the guest to power off. The guest does not answer: wait for
    /// the end of its VMM.
    pub(crate) fn power_off(&self) {
        // The caller waits for the end of the VMM, whatever the answer.
        let _ = self.exchange(Command::PowerOff, QUICK);
    }
}

impl Drop for AgentClient {
    fn drop(&mut self) {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        // Ends the reader; fails if the guest has hung up already, which ends it as well.
        let _ = requests.shutdown(std::net::Shutdown::Both);
        drop(requests);
        if let Some(reader) = self.reader.take() {
            // It says by itself what it dies of.
            let _ = reader.join();
        }
    }
}

fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow!("unexpected answer from the guest agent (got {reply:?})")
}

/// Hands out answers until the connection ends.
fn read_answers(connection: UnixStream, waiting: &Waiting) -> Result<()> {
    let mut answers = BufReader::new(connection);
    let limit = u64::try_from(MAX_LINE_BYTES)?;
    loop {
        let mut line = Vec::new();
        let read = answers.by_ref().take(limit).read_until(b'\n', &mut line);
        // A broken connection is how a killed QEMU looks.
        if read.is_err() || line.is_empty() {
            return Ok(());
        }
        ensure!(line.last() == Some(&b'\n'), "an answer is cut off after {} bytes", line.len());
        let Response { id, outcome } = serde_json::from_slice(&line)
            .with_context(|| format!("an answer is {:?}", String::from_utf8_lossy(&line)))?;
        let sender = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id));
        match (sender, outcome) {
            (Some(sender), outcome) => {
                // The caller has just timed out.
                let _ = sender.send(outcome);
            }
            (None, Outcome::Error(failure)) if id == 0 => bail!("the agent complains: {failure}"),
            // The caller has timed out.
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::Failure;

    fn read_request(lines: &mut impl BufRead) -> Request {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn send(mut port: &UnixStream, id: u64, outcome: Outcome) {
        let line = serde_json::to_string(&Response { id, outcome }).unwrap() + "\n";
        port.write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn answers_find_their_askers_in_any_order() {
        let (ours, port) = UnixStream::pair().unwrap();
        let client = AgentClient::new(ours).unwrap();
        thread::scope(|scope| {
            let long = scope.spawn(|| client.free(1));
            let mut lines = BufReader::new(&port);
            let first = read_request(&mut lines);
            assert_eq!(first.command, Command::Free { id: 1 });
            let quick = scope.spawn(|| client.read_file("/x"));
            let second = read_request(&mut lines);
            send(&port, second.id, Outcome::Ok(Reply::Text("y".into())));
            assert_eq!(quick.join().unwrap().unwrap(), "y");
            let failure = Failure { message: "busy".into(), errno: Some("EBUSY".into()) };
            send(&port, first.id, Outcome::Error(failure));
            let error = long.join().unwrap().unwrap_err();
            assert_eq!(error.downcast_ref::<Failure>().unwrap().errno.as_deref(), Some("EBUSY"));
            assert!(format!("{error:#}").contains("Free { id: 1 }: busy"), "{error:#}");
        });
    }

    #[test]
    fn a_hang_up_wakes_the_asker_and_refuses_the_next() {
        let (ours, port) = UnixStream::pair().unwrap();
        let client = AgentClient::new(ours).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| client.meminfo());
            read_request(&mut BufReader::new(&port));
            port.shutdown(std::net::Shutdown::Both).unwrap();
            let error = waiting.join().unwrap().unwrap_err();
            assert!(format!("{error:#}").contains("is gone"), "{error:#}");
        });
        assert!(client.meminfo().is_err());
    }

    #[test]
    fn silent_guest_times_out_and_late_reply_is_ignored() {
        let (ours, port) = UnixStream::pair().unwrap();
        let client = AgentClient::new(ours).unwrap();
        let error = client.call(Command::MemInfo, Duration::from_millis(5)).unwrap_err();
        assert!(format!("{error:#}").contains("no answer within 5ms"), "{error:#}");
        let mut lines = BufReader::new(&port);
        let late = read_request(&mut lines);
        send(&port, late.id, Outcome::Ok(Reply::Done));
        thread::scope(|scope| {
            let next = scope.spawn(|| client.free(2));
            let request = read_request(&mut lines);
            send(&port, request.id, Outcome::Ok(Reply::Done));
            next.join().unwrap().unwrap();
        });
    }
}
