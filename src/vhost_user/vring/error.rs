// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is wrong with a queue.

use std::io;

use virtio_queue::Error as QueueError;

/// What is wrong with a queue. The driver's fault in every case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    /// The rings lie outside guest memory, or their indices make no sense.
    #[error("the rings cannot be used")]
    Broken(#[source] QueueError),
    /// The driver says that there are chains, but none can be taken.
    #[error("the available ring cannot be read")]
    Stuck,
    /// A chain that begins past the end of the descriptor table has no place in the used ring. The
    /// queue stands still until it is started again.
    #[error(
        "a chain begins at descriptor {0}, past the end of the table: the queue stands still until \
         it is started again"
    )]
    Head(u16),
    /// A chain cannot be returned. The queue stands still until it is started again.
    #[error("a chain cannot be returned: the queue stands still until it is started again")]
    Used(#[source] QueueError),
    /// The driver's call descriptor cannot be signalled.
    #[error("cannot signal the driver")]
    Signal(#[source] io::Error),
}
