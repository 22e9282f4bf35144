// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `failing-calls`: each system call of a session fails once, and the daemon is seen to come through.
//!
//! | file | what |
//! |---|---|
//! | `session` | what the daemon does meanwhile |

mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use strum::{Display, EnumString, VariantNames};
use vmm_integration::daemon::DaemonProcess;

use self::session::{Memory, OPTIONS, serve};
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::faults::inject::{Tampering, strace};
use crate::parameters::parameters;
use crate::parameters::takes::Whole;
use crate::progress;
use crate::store::{Findings, Verdict, VerdictKind};

/// See the module.
pub(super) struct FailingCalls;

/// How long the daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Calls that cannot fail as they are made here, and of which libraries expect that: a thread's end and the
/// return from a signal, the mask of signals and the registration with which the C library starts a thread, the
/// clock, what the process is called, a limit of its own.
const NEVER: [&str; 10] = [
    "exit",
    "exit_group",
    "rt_sigreturn",
    "restart_syscall",
    "rt_sigprocmask",
    "rseq",
    "clock_gettime",
    "getpid",
    "gettid",
    "prlimit64",
];
/// What the standard library says before it aborts a process in which a thread has no stack for signals.
const NO_THREAD: &str = "alternative stack";
/// What strace writes behind a call that it let fail.
const INJECTED: &str = "(INJECTED)";

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "UPPERCASE")]
pub(super) enum Error {
    /// A signal interrupted it.
    Eintr,
    /// It would wait.
    Eagain,
    /// The kernel has no memory.
    Enomem,
    /// The file system is full.
    Enospc,
    /// The process has as many descriptors as it may have.
    Emfile,
    /// The other end is gone.
    Epipe,
}

impl Error {
    const ALL: [Self; 6] =
        [Self::Eintr, Self::Eagain, Self::Enomem, Self::Enospc, Self::Emfile, Self::Epipe];
}

impl Case for Error {}

parameters! {
    /// The parameters.
    pub(super) struct Settings {
        most: u16, Whole(1, 1000), 2, 20,
            "of each call the first so many in each thread fail, one a session";
    }
}

/// What came of a session in which calls failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Display)]
#[strum(serialize_all = "kebab-case")]
enum Outcome {
    /// Everything was answered.
    Served,
    /// A step of it was not, and the next session was.
    Refused,
    /// The daemon ended with an error that it logged.
    Ended,
    /// The standard library aborted it, for want of a stack for a thread's signals.
    Aborted,
}

impl Experiment for FailingCalls {
    type Parameters = Settings;
    type Case = Error;

    fn name(&self) -> &'static str {
        "failing-calls"
    }

    fn about(&self) -> &'static str {
        "Lets each system call of a session fail once, which uses all queues, the control socket and metrics: \
         memory in use stays as it is, and the session goes on, or the next one is served, or the daemon ends \
         with an error that it logs; by a signal only where the standard library cannot start a thread."
    }

    fn repeats(&self, _: &Error) -> Repeats {
        Repeats::ButForTimes
    }

    fn cases(&self, _: &Settings) -> Vec<Error> {
        Error::ALL.into()
    }

    fn run(&self, error: &Error, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        if let Err(why) = strace() {
            return Ok(Findings::verdict(VerdictKind::NotTestable, format!("{why:#}")));
        }
        let daemon = context.daemon()?;
        let calls = calls_of_a_session(&daemon)?;
        let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
        let mut refusals: BTreeSet<String> = BTreeSet::new();
        let (mut failed, mut wrong) = (0, Vec::new());
        for (done, call) in calls.iter().enumerate() {
            for nth in 1..=settings.most {
                context.progress.at(done as u64, calls.len() as u64);
                // Of an eventfd it says that the event is there already.
                if (call.as_str(), *error) == ("write", Error::Eagain) {
                    break;
                }
                progress::check()?;
                failed += 1;
                let one = fail_once(&daemon, call, *error, nth);
                let (outcome, why) = match one {
                    Ok(Some(one)) => one,
                    Ok(None) => {
                        failed -= 1;
                        break;
                    }
                    Err(why) => {
                        wrong.push(format!("call {nth} of {call} with {error}: {why:#}"));
                        continue;
                    }
                };
                *outcomes.entry(outcome).or_default() += 1;
                if outcome != Outcome::Served {
                    refusals.insert(format!("{outcome}: call {nth} of {call}: {why}"));
                }
            }
        }
        ensure!(wrong.is_empty(), "{} of {failed}:\n{}", wrong.len(), wrong.join("\n\n"));
        ensure!(failed > 0, "no call failed");
        let mut findings = Findings::default();
        let names = calls.len() as u64;
        findings.count("calls", names, "", "system calls of a session, by name");
        findings.count("sessions", failed, "", "sessions in each of which calls failed");
        for outcome in [Outcome::Served, Outcome::Refused, Outcome::Ended, Outcome::Aborted] {
            let count = outcomes.get(&outcome).copied().unwrap_or_default();
            findings.count(&outcome.to_string(), count, "", "of them");
        }
        findings.note(format!("calls: {}", calls.iter().cloned().collect::<Vec<_>>().join(" ")));
        refusals.into_iter().for_each(|refusal| findings.note(refusal));
        let text = format!("{failed} sessions, {names} system calls with {error}, nothing lost");
        findings.verdict = Some(Verdict { kind: VerdictKind::Survived, text });
        Ok(findings)
    }
}

/// The names of the system calls of a session.
fn calls_of_a_session(binary: &Path) -> Result<BTreeSet<String>> {
    let trace = tempfile::NamedTempFile::new()?;
    let mut daemon = DaemonProcess::spawn_controlled(binary, OPTIONS)?;
    let memory = Memory::new()?;
    let tampering = Tampering::attach(daemon.pid(), &["trace=all"], trace.path())?;
    serve(&daemon, &memory).context("the session in which no call fails")?;
    // A process that is traced cannot be waited for until strace has seen its end.
    drop(tampering);
    let ended = daemon.terminate(PATIENCE)?;
    ensure!(ended.status.success(), "{}", daemon.log());
    let trace = fs::read_to_string(trace.path())?;
    let name = |line: &str| {
        let call = line.split_whitespace().nth(1)?.split_once('(')?.0;
        call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| call.to_owned())
    };
    let calls: BTreeSet<String> = trace.lines().filter_map(name).collect();
    Ok(calls.into_iter().filter(|call| !NEVER.contains(&call.as_str())).collect())
}

/// What came of a session in which the nth such call of each thread failed, and why; nothing where there were
/// not so many.
///
/// # Errors
/// When memory was lost, or the daemon fails in a way that it should not.
fn fail_once(
    binary: &Path,
    call: &str,
    error: Error,
    nth: u16,
) -> Result<Option<(Outcome, String)>> {
    let trace = tempfile::NamedTempFile::new()?;
    let mut daemon = DaemonProcess::spawn_controlled(binary, OPTIONS)?;
    let memory = Memory::new()?;
    let inject = format!("inject={call}:error={error}:when={nth}");
    let traced = format!("trace={call}");
    let tampering = match Tampering::attach(daemon.pid(), &[&traced, &inject], trace.path()) {
        Ok(tampering) => tampering,
        // It goes on waiting in the call that fails.
        Err(error) => match daemon.wait(PATIENCE)? {
            Some(status) => return well_ended(status, &daemon.log()).map(Some),
            None => return Err(error),
        },
    };
    let first = serve(&daemon, &memory);
    drop(tampering);
    memory.check()?;
    let injected = fs::read_to_string(trace.path())?.contains(INJECTED);
    let outcome = match &first {
        Ok(()) => (Outcome::Served, String::new()),
        Err(why) => (Outcome::Refused, format!("{why:#}").replace('\n', " ")),
    };
    if let Some(status) = daemon.wait(Duration::ZERO)? {
        return well_ended(status, &daemon.log()).map(Some);
    }
    // What failed once does no more.
    if let Err(why) = serve(&daemon, &memory) {
        // It may have been about to end.
        if first.is_err()
            && let Some(status) = daemon.wait(PATIENCE)?
        {
            return well_ended(status, &daemon.log()).map(Some);
        }
        bail!("the next session: {why:#}; of the first one: {first:?}\n{}", daemon.log());
    }
    let ended = daemon.terminate(PATIENCE)?;
    memory.check()?;
    ensure!(ended.status.success(), "the end: {}\n{}", ended.status, daemon.log());
    Ok(injected.then_some(outcome))
}

/// What came of a daemon that ended by itself, and the error that it logged.
fn well_ended(status: ExitStatus, log: &str) -> Result<(Outcome, String)> {
    let last = log.lines().last().context("the daemon ended and said nothing")?.to_owned();
    if log.contains(NO_THREAD) {
        return Ok((Outcome::Aborted, last));
    }
    ensure!(status.signal().is_none(), "the daemon ended by {status}\n{log}");
    ensure!(!log.contains("panicked"), "the daemon panicked\n{log}");
    ensure!(status.code() != Some(0), "the daemon ended as if all were well\n{log}");
    Ok((Outcome::Ended, last))
}
