// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a message or a descriptor of a frontend is not let in.

use std::io;

use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

use super::areas::AreaFault;
use super::file_system::FileFault;
use super::validate::ShapeError;
use crate::logging::error_chain;

/// How a peer breaks the protocol, and with it the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// A payload that no message of the protocol has.
    #[error("message {request} announces {size} bytes, expected at most {MAX_MSG_SIZE}")]
    TooLong {
        /// The kind of message.
        request: u32,
        /// The bytes that it announces.
        size: u32,
    },
    /// More descriptors than any message of the protocol has.
    #[error("a message with more descriptors than expected ({MAX_ATTACHED_FD_ENTRIES})")]
    TooManyDescriptors,
    /// The kernel could not give this process a descriptor that came.
    #[error(
        "a descriptor that the frontend sent could not be received: raise the limit of open files \
         (ulimit -n)"
    )]
    NoRoomForDescriptors,
    /// A message that is not what the protocol says.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A message or a descriptor that is not let in.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The framework ended while it was told what had been said before.
    #[error("a setting of the frontend that the daemon before this one took is not taken")]
    Ended,
    /// The socket.
    #[error("the connection broke")]
    Socket(#[source] io::Error),
}

/// Why a message is not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Too few descriptors, or too many.
    #[error("{request:?} comes with {came} descriptors, expected {expected}{hint}")]
    Number {
        /// The message.
        request: FrontendReq,
        /// How many came.
        came: usize,
        /// How many should have.
        expected: usize,
        /// What to do about it.
        hint: &'static str,
    },
    /// A descriptor of a wrong kind.
    #[error("{request:?} comes with {came}, expected {expected}")]
    Kind {
        /// The message.
        request: FrontendReq,
        /// What came.
        came: String,
        /// What should have.
        expected: &'static str,
    },
    /// A file that guest memory or a dirty log may not lie in.
    #[error("{what} is refused")]
    File {
        /// What was to lie in it.
        what: String,
        /// Why not.
        #[source]
        fault: FileFault,
    },
    /// A region or a dirty log that cannot be.
    #[error("{what} is refused")]
    Area {
        /// Which one.
        what: String,
        /// Why not.
        #[source]
        fault: AreaFault,
    },
    /// Rings outside of what is shared.
    #[error(
        "the rings of queue {queue} lie outside of all memory that the frontend shares. The \
         guest's memory is not shared: add share=on to its memory backend (QEMU), or shared=on to \
         --memory (cloud-hypervisor)"
    )]
    NotShared {
        /// The queue.
        queue: usize,
    },
    /// A frontend that makes the configuration up.
    #[error(
        "the frontend does not ask for the device's configuration (VHOST_USER_PROTOCOL_F_CONFIG), \
         and a guest that cannot read it gives all of its memory to the balloon; with QEMU: add \
         config_size=16 to the device"
    )]
    NoConfig,
}

/// Why the device of a VMM is not served, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Its name, for programs.
    pub(crate) cause: &'static str,
    /// What was wrong and what to do.
    pub(crate) text: String,
}

impl Refused {
    pub(super) fn new(refusal: &Refusal) -> Self {
        let cause = match refusal {
            Refusal::NotShared { .. } => "memory_not_shared",
            // The hint is about it.
            Refusal::Number { hint, .. } if !hint.is_empty() => "memory_not_shared",
            Refusal::NoConfig => "no_config_size",
            Refusal::File { .. } => "memory_file",
            Refusal::Area { .. } => "memory_region",
            Refusal::Number { .. } | Refusal::Kind { .. } => "descriptors",
        };
        Self { cause, text: error_chain(refusal) }
    }
}
