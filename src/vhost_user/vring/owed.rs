// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Notifications that the driver is owed, and where they go.

use std::io;

/// See [`Owed::unnotified`].
const MUST_NOTIFY: u32 = u32::MAX;

/// From the moment a chain is returned the driver is owed a notification, until its call descriptor
/// was signalled or it said that it wants none.
#[derive(Debug)]
pub(crate) struct Owed<C> {
    /// Chains that were returned since the driver was notified; [`MUST_NOTIFY`] if it must be
    /// notified whatever it says.
    unnotified: u32,
    /// A chain was returned since the queue began, or may have been before.
    has_returned: bool,
    /// The framework's own stays empty: it takes eventfds only.
    call: Option<C>,
}

impl<C> Default for Owed<C> {
    fn default() -> Self {
        Self { unnotified: 0, has_returned: false, call: None }
    }
}

impl<C> Owed<C> {
    /// A chain was returned.
    pub(crate) fn returned(&mut self) {
        self.has_returned = true;
        self.unnotified = self.unnotified.saturating_add(1);
    }

    /// The queue begins: the driver must be notified of what was returned before, or of nothing.
    pub(crate) fn begin(&mut self, must: bool) {
        self.has_returned = must;
        self.unnotified = if must { MUST_NOTIFY } else { 0 };
    }

    /// There is another call descriptor, or none, of a queue that runs or does not. The one before may
    /// have been signalled when nothing listened to it any more.
    pub(crate) fn replace_call(&mut self, call: Option<C>, runs: bool) {
        if runs && self.has_returned || self.unnotified > 0 {
            self.unnotified = MUST_NOTIFY;
        }
        self.call = call;
    }

    /// Whether the driver is owed a notification.
    pub(crate) fn is_owed(&self) -> bool {
        self.unnotified > 0
    }

    /// The call descriptor.
    pub(crate) fn call(&self) -> Option<&C> {
        self.call.as_ref()
    }

    /// Notifies the driver of returned chains, if there are any, there is a call descriptor, and it
    /// is `wanted`.
    ///
    /// # Errors
    /// What `signal` says; the notification is owed on.
    pub(crate) fn pay(
        &mut self,
        wanted: impl FnOnce() -> bool,
        signal: impl FnOnce(&C) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(call) = self.call.as_ref().filter(|_| self.unnotified > 0) else { return Ok(()) };
        // The library counts the chains since it was asked last in 16 bits.
        let must = self.unnotified >= u32::from(u16::MAX);
        if (wanted() || must)
            && let Err(error) = signal(call)
        {
            self.unnotified = MUST_NOTIFY;
            return Err(error);
        }
        self.unnotified = 0;
        Ok(())
    }
}
