// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault plans: what goes wrong on the backend's side, and when.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What goes wrong in a run, as a TOML file or as flags.
///
/// ```toml
/// [[fault]]
/// kind = "delay-ack"
/// after = 3      # skips the first three chains; default 0
/// times = 2      # hits the next two; default 1; 0 hits all
/// ms = 500
/// ```
///
/// As a flag the same is `delay-ack:after=3,times=2,ms=500`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Every fault.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// Chains of the reporting queue to skip.
    #[serde(default)]
    pub after: u64,
    /// Chains to hit then; 0 for all.
    #[serde(default = "once")]
    pub times: u64,
    /// Its duration in milliseconds, for kinds that take time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// The name of the error, for kinds that fail with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
}

fn once() -> u64 {
    1
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A chain is returned late.
    DelayAck,
    /// A chain is served and never returned.
    DropAck,
    /// A chain is returned twice.
    DuplicateAck,
    /// Two chains are returned in the other order.
    ReorderAcks,
    /// A chain is returned before its pages are discarded.
    EarlyAck,
    /// Instead of the chain one is returned that was never there.
    WrongAck,
    /// A chain is returned and the driver is not told.
    LostInterrupt,
    /// The driver is told, and no chain was returned.
    SpuriousInterrupt,
    /// A chain is returned with a length although nothing was written.
    UsedLength,
    /// The discarding system call fails.
    DiscardFails,
    /// The discarding system call takes long.
    DiscardSlow,
    /// A region of guest memory is taken away while a chain is being served.
    MemoryTable,
    /// The queue is stopped while a chain is being served.
    StopQueue,
    /// The frontend hangs up while a chain is being served.
    FrontendHangUp,
    /// The frontend stops in the middle of a message.
    StalledControl,
    /// The daemon is killed while it serves a chain, and started again.
    KillDaemon,
    /// The daemon is stopped (SIGSTOP), and goes on.
    StopDaemon,
    /// The daemon gets no more descriptors.
    NoDescriptors,
}

/// The part that a fault is injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injector {
    /// A device of the lab's own, because no correct backend does this.
    FaultyDevice,
    /// The daemon, from outside.
    Daemon,
}

/// The documented effect of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Documented {
    /// Nothing is lost, and everything goes on.
    Survives,
    /// The guest waits for its acknowledgement for as long as there is none. Linux has no timeout
    /// there (`wait_event` in `virtballoon_free_page_report`).
    Waits,
    /// Memory in use may be lost: the device breaks the one promise that reporting rests on.
    MayLose,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 18] = [
        Self::DelayAck,
        Self::DropAck,
        Self::DuplicateAck,
        Self::ReorderAcks,
        Self::EarlyAck,
        Self::WrongAck,
        Self::LostInterrupt,
        Self::SpuriousInterrupt,
        Self::UsedLength,
        Self::DiscardFails,
        Self::DiscardSlow,
        Self::MemoryTable,
        Self::StopQueue,
        Self::FrontendHangUp,
        Self::StalledControl,
        Self::KillDaemon,
        Self::StopDaemon,
        Self::NoDescriptors,
    ];

    /// The name in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::DelayAck => "delay-ack",
            Self::DropAck => "drop-ack",
            Self::DuplicateAck => "duplicate-ack",
            Self::ReorderAcks => "reorder-acks",
            Self::EarlyAck => "early-ack",
            Self::WrongAck => "wrong-ack",
            Self::LostInterrupt => "lost-interrupt",
            Self::SpuriousInterrupt => "spurious-interrupt",
            Self::UsedLength => "used-length",
            Self::DiscardFails => "discard-fails",
            Self::DiscardSlow => "discard-slow",
            Self::MemoryTable => "memory-table",
            Self::StopQueue => "stop-queue",
            Self::FrontendHangUp => "frontend-hang-up",
            Self::StalledControl => "stalled-control",
            Self::KillDaemon => "kill-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::NoDescriptors => "no-descriptors",
        }
    }

    /// The part that it is injected into.
    pub fn injector(self) -> Injector {
        match self {
            Self::DelayAck
            | Self::DropAck
            | Self::DuplicateAck
            | Self::ReorderAcks
            | Self::EarlyAck
            | Self::WrongAck
            | Self::LostInterrupt
            | Self::SpuriousInterrupt
            | Self::UsedLength => Injector::FaultyDevice,
            _ => Injector::Daemon,
        }
    }

    /// Its documented effect.
    pub fn documented(self) -> Documented {
        match self {
            Self::DropAck | Self::WrongAck | Self::LostInterrupt => Documented::Waits,
            // Taken for that of the next chain, which is being served still.
            Self::EarlyAck | Self::DuplicateAck => Documented::MayLose,
            _ => Documented::Survives,
        }
    }

    /// The default duration in milliseconds; none if it takes no time.
    pub fn default_ms(self) -> Option<u64> {
        match self {
            Self::DelayAck | Self::EarlyAck | Self::DiscardSlow => Some(100),
            Self::StalledControl | Self::StopDaemon => Some(1000),
            Self::MemoryTable | Self::StopQueue | Self::FrontendHangUp | Self::KillDaemon => {
                Some(500)
            }
            _ => None,
        }
    }

    /// Whether it fails with a named error.
    pub fn takes_errno(self) -> bool {
        self == Self::DiscardFails
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The errors that a system call can be made to fail with, by name.
const ERRORS: [(&str, i32); 11] = [
    ("EBADF", libc::EBADF),
    ("EFBIG", libc::EFBIG),
    ("EINTR", libc::EINTR),
    ("EINVAL", libc::EINVAL),
    ("EIO", libc::EIO),
    ("ENODEV", libc::ENODEV),
    ("ENOMEM", libc::ENOMEM),
    ("ENOSPC", libc::ENOSPC),
    ("ENOSYS", libc::ENOSYS),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ("EPERM", libc::EPERM),
];

/// An error in a plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read the fault plan {0}")]
    File(String, #[source] std::io::Error),
    /// It is not a plan.
    #[error("{place}: {message}")]
    Form {
        /// The file or the flag.
        place: String,
        /// Which field, and what was expected.
        message: String,
    },
    /// A field is unexpected, missing, or has an unknown value.
    #[error("fault {number} ({kind}): {message}")]
    Field {
        /// From 1.
        number: usize,
        /// Of which kind it is.
        kind: FaultKind,
        /// Which field, and what was expected.
        message: String,
    },
}

impl Fault {
    /// A fault of this kind that happens once, to the first chain, with what it takes by default.
    pub fn new(kind: FaultKind) -> Self {
        let errno = kind.takes_errno().then(|| "ENOSPC".to_owned());
        Self { kind, after: 0, times: 1, ms: kind.default_ms(), errno }
    }

    /// Reads a flag, `KIND[:FIELD=VALUE,…]`.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(flag: &str) -> Result<Self, PlanError> {
        let (kind, fields) = flag.split_once(':').unwrap_or((flag, ""));
        let mut table = toml::Table::new();
        table.insert("kind".to_owned(), toml::Value::from(kind));
        for field in fields.split(',').filter(|field| !field.is_empty()) {
            let form =
                |message: String| PlanError::Form { place: format!("--fault {flag}"), message };
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| form(format!("{field:?}: expected FIELD=VALUE")))?;
            let value =
                value.parse::<i64>().map_or_else(|_| toml::Value::from(value), toml::Value::from);
            if table.insert(name.to_owned(), value).is_some() {
                return Err(form(format!("{name} occurs twice")));
            }
        }
        table.try_into().map_err(|error: toml::de::Error| PlanError::Form {
            place: format!("--fault {flag}"),
            message: error.to_string().trim_end().replace('\n', ", "),
        })
    }

    /// For how long, in milliseconds.
    pub fn millis(&self) -> u64 {
        self.ms.or(self.kind.default_ms()).unwrap_or(0)
    }

    /// Number of the error.
    pub fn errno_number(&self) -> Option<i32> {
        let name = self.errno.as_deref()?;
        ERRORS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    /// Whether it happens to chain `number`, from 0.
    pub fn hits(&self, number: u64) -> bool {
        number >= self.after && (self.times == 0 || number - self.after < self.times)
    }

    fn check(&self) -> Result<(), String> {
        if self.ms.is_some() && self.kind.default_ms().is_none() {
            return Err(format!("unexpected ms: {} takes no time", self.kind));
        }
        match &self.errno {
            Some(_) if !self.kind.takes_errno() => {
                Err(format!("unexpected errno: {} fails with none", self.kind))
            }
            None if self.kind.takes_errno() => {
                Err(format!("missing errno: expected one of {}", error_names()))
            }
            Some(name) if self.errno_number().is_none() => {
                Err(format!("unknown errno {name:?}: expected one of {}", error_names()))
            }
            _ => Ok(()),
        }
    }
}

/// As a flag.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:after={},times={}", self.kind, self.after, self.times)?;
        if let Some(ms) = self.ms {
            write!(f, ",ms={ms}")?;
        }
        if let Some(errno) = &self.errno {
            write!(f, ",errno={errno}")?;
        }
        Ok(())
    }
}

fn error_names() -> String {
    ERRORS.map(|(name, _)| name).join(", ")
}

impl FaultPlan {
    /// A plan of these.
    ///
    /// # Errors
    /// [`PlanError`] where a field has no business there, is missing, or means nothing.
    pub fn new(faults: Vec<Fault>) -> Result<Self, PlanError> {
        for (fault, number) in faults.iter().zip(1..) {
            let field = |message| PlanError::Field { number, kind: fault.kind, message };
            fault.check().map_err(field)?;
        }
        Ok(Self { faults })
    }

    /// Reads a plan in TOML; `place` says where it is from.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(text: &str, place: &str) -> Result<Self, PlanError> {
        let plan: Self = toml::from_str(text).map_err(|error| PlanError::Form {
            place: place.to_owned(),
            message: error.to_string(),
        })?;
        Self::new(plan.faults)
    }

    /// Reads a plan from a file.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn read(file: &Path) -> Result<Self, PlanError> {
        let place = file.display().to_string();
        let text = fs::read_to_string(file).map_err(|e| PlanError::File(place.clone(), e))?;
        Self::parse(&text, &place)
    }

    /// What happens to chain `number`, from 0, of a faulty device: the first fault of the plan that
    /// is its to bring about and hits it.
    pub fn of_chain(&self, number: u64) -> Option<&Fault> {
        let own = |fault: &&Fault| fault.kind.injector() == Injector::FaultyDevice;
        self.faults.iter().filter(own).find(|fault| fault.hits(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_in_a_file_and_the_same_as_flags() {
        let text = "[[fault]]\nkind = \"delay-ack\"\nafter = 3\ntimes = 2\nms = 500\n\
                    [[fault]]\nkind = \"drop-ack\"\n";
        let plan = FaultPlan::parse(text, "plan.toml").unwrap();
        let flags = ["delay-ack:after=3,times=2,ms=500", "drop-ack"];
        let parsed = flags.map(|flag| Fault::parse(flag).unwrap());
        assert_eq!(plan.faults, parsed);
        let kinds = (0..7).map(|chain| plan.of_chain(chain).map(|fault| fault.kind));
        let (drop, delay) = (Some(FaultKind::DropAck), Some(FaultKind::DelayAck));
        assert_eq!(kinds.collect::<Vec<_>>(), [drop, None, None, delay, delay, None, None]);
        for fault in &plan.faults {
            assert_eq!(Fault::parse(&fault.to_string()).unwrap(), *fault);
        }
    }

    #[test]
    fn every_kind_is_written_as_it_is_read() {
        for kind in FaultKind::ALL {
            let fault = Fault::new(kind);
            assert_eq!(Fault::parse(&fault.to_string()).unwrap(), fault, "{kind}");
            FaultPlan::new(vec![fault]).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected() {
        let fault = |fields: &str| format!("[[fault]]\nkind = {fields}\n");
        for (text, expected) in [
            (fault("\"dleay-ack\""), vec!["dleay-ack", "expected one of", "delay-ack"]),
            (fault("\"delay-ack\"\nmss = 1"), vec!["unknown field `mss`", "`ms`"]),
            (fault("\"delay-ack\"\nms = \"x\""), vec!["ms = \"x\"", "expected u64"]),
            (fault("\"drop-ack\"\nms = 1"), vec!["fault 1 (drop-ack)", "ms", "takes no time"]),
            (fault("\"discard-fails\""), vec!["missing errno", "ENOSPC"]),
            (fault("\"discard-fails\"\nerrno = \"EX\""), vec!["unknown errno \"EX\"", "ENOSPC"]),
            (fault("\"drop-ack\"\nerrno = \"EIO\""), vec!["unexpected errno"]),
            (
                fault("\"drop-ack\"") + &fault("\"kill-daemon\"\nerrno = \"EIO\""),
                vec!["fault 2 (kill-daemon)", "unexpected errno"],
            ),
            ("[[fualt]]\n".to_owned(), vec!["unknown field `fualt`", "expected `fault`"]),
            ("[[fault]]\nms = 1\n".to_owned(), vec!["missing field `kind`"]),
        ] {
            let said = FaultPlan::parse(&text, "plan.toml").unwrap_err().to_string();
            for words in expected {
                assert!(said.contains(words), "{words:?} is not in: {said}");
            }
        }
        for (flag, expected) in [
            ("delay", "unknown variant `delay`"),
            ("delay-ack:ms", "\"ms\": expected FIELD=VALUE"),
            ("delay-ack:ms=1,ms=2", "ms occurs twice"),
            ("delay-ack:ms=x", "expected u64"),
            ("delay-ack:ms=-1", "ms"),
        ] {
            let said = Fault::parse(flag).unwrap_err().to_string();
            assert!(said.contains(expected) && said.contains(flag), "{said}");
        }
    }
}
