// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can happen in a session.

use arbitrary::Arbitrary;

/// A session from its first message on.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    /// What the device offers.
    pub(super) offers: u8,
    /// Optional protocol features that the frontend takes.
    pub(super) protocol: u8,
    pub(super) features: Features,
    pub(super) regions: u8,
    /// Queues that are started at once.
    pub(super) queues: u8,
    pub(super) steps: Vec<Step>,
}

/// What a driver acks, of what is offered.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) device: u8,
    pub(super) logs: bool,
    pub(super) event_idx: bool,
    /// Without it all queues are enabled at once.
    pub(super) no_protocol: bool,
}

#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    Chain {
        queue: u8,
        chain: Named,
        silent: bool,
    },
    Kick {
        queue: u8,
    },
    SetUp {
        queue: u8,
        place: u8,
        size: u8,
    },
    Size {
        queue: u8,
        size: u8,
    },
    Place {
        queue: u8,
        place: u8,
    },
    Base {
        queue: u8,
        base: u16,
    },
    SetKick {
        queue: u8,
        some: bool,
    },
    SetCall {
        queue: u8,
        some: bool,
    },
    SetErr {
        queue: u8,
    },
    Enable {
        queue: u8,
        on: bool,
    },
    Stop {
        queue: u8,
    },
    SetFeatures(Features),
    Table {
        regions: u8,
    },
    Add {
        region: u8,
        odd: Option<Odd>,
    },
    Remove {
        region: u8,
    },
    SetConfig {
        offset: u8,
        bytes: Vec<u8>,
    },
    GetConfig {
        offset: u8,
        len: u8,
    },
    LogBase,
    LogFd,
    ResetDevice,
    ResetOwner,
    SetOwner,
    Save,
    Load {
        saved: bool,
        bytes: Vec<u8>,
    },
    Channel,
    Pause(bool),
    Pin {
        page: u8,
        pages: u8,
    },
    Unpin,
    AskStatistics,
    /// A message that a balloon has no use for.
    Other {
        request: u8,
        payload: Vec<u8>,
        fd: bool,
    },
}

/// Memory as a chain names it: each range by its page, bytes into the page, and bytes less or more than
/// whole pages.
#[derive(Arbitrary, Debug)]
pub(super) struct Named {
    pub(super) ranges: Vec<(u8, u8, i8, bool)>,
    pub(super) pfns: Vec<u8>,
}

/// Numbers that a region has instead.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Odd {
    pub(super) gpa: i16,
    pub(super) bytes: i16,
    pub(super) offset: i16,
}
