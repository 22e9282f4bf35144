// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The outcome of a fault.

use std::fmt;

use super::plan::{Documented, FaultKind};

/// The observations of a guest during a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Chains that the fault happened to, or calls of the daemon.
    pub faults: u64,
    /// Bytes of memory in use that do not hold what they should.
    pub lost_bytes: u64,
    /// Whether the idle guest still waited for an acknowledgement.
    pub waits: bool,
    /// The observation, in a sentence.
    pub seen: String,
    /// The stack of the guest's waiting reporter, where it is known.
    pub stack: Vec<String>,
}

/// The comparison of an observation with the documented effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing was lost and everything went on.
    Survived,
    /// It failed in the way that is documented.
    AsDocumented,
    /// Something was lost, or hung, that should not have.
    Failed,
}

impl Met {
    /// Compares it with the documented effect of `kind`.
    pub fn judge(&self, kind: FaultKind) -> Judgement {
        match (kind.documented(), self.lost_bytes > 0, self.waits) {
            (_, false, false) => Judgement::Survived,
            (Documented::Waits, false, true) | (Documented::MayLose, _, _) => {
                Judgement::AsDocumented
            }
            _ => Judgement::Failed,
        }
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} faults, {} bytes lost", self.faults, self.lost_bytes)?;
        if self.waits {
            f.write_str(", the guest waits")?;
        }
        write!(f, ": {}", self.seen)?;
        if !self.stack.is_empty() {
            write!(f, " [{}]", self.stack.join(" < "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undocumented_loss_or_wait_is_a_failure() {
        let met = |lost_bytes, waits| Met { lost_bytes, waits, ..Met::default() };
        for kind in FaultKind::ALL {
            assert_eq!(met(0, false).judge(kind), Judgement::Survived);
            let documented = |bad| if bad { Judgement::Failed } else { Judgement::AsDocumented };
            let lost = documented(kind.documented() != Documented::MayLose);
            assert_eq!(met(4096, false).judge(kind), lost, "{kind}");
            let waits = documented(kind.documented() == Documented::Survives);
            assert_eq!(met(0, true).judge(kind), waits, "{kind}");
        }
    }
}
