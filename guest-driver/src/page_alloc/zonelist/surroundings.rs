// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What meets with an update of the zonelists. An explorer implements it.

/// Interrupts on the CPU that updates, the console, and readers that wait for the sequence count. Nothing of
/// it is called in the fast path.
pub trait Surroundings: Send + Sync {
    /// The sequence count is odd from now on, or even again.
    fn updates(&self, _odd: bool) {}

    /// An interrupt may come here, on the CPU that updates. Before each step of an update that leaves
    /// interrupts enabled.
    fn interruptible(&self) {}

    /// The update prints a line, and waits for the console. Not before the end of an update that defers it.
    fn prints(&self) {}

    /// A reader on `cpu` begins to wait for an even sequence count; `atomic`: as one that cannot sleep.
    fn waits(&self, _cpu: usize, _atomic: bool) {}

    /// It waits no longer.
    fn waited(&self, _cpu: usize, _atomic: bool) {}
}
