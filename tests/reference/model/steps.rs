// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The steps, and how often each is drawn.

use proptest::prelude::*;

use crate::calls::{Calls, Refusal, Weather};
use crate::memory::{PAGES, REGIONS, Span};
use crate::model::{Home, PINNED};

/// Spans that a chain names at the most.
const MOST_SPANS: usize = 5;
const MIB: u64 = 1 << 20;

/// What a chain names, and what becomes of the calls that discard it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) spans: Vec<Span>,
    pub(crate) refusal: Option<Refusal>,
}

/// How a client of the control socket behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// Sends so many bytes at a time.
    InPieces(usize),
    /// Hangs up within its request.
    HangsUp,
    /// Asks and takes no answer.
    TakesNoAnswer,
    /// Connects, and says nothing as long as the daemon lives.
    Silent,
    /// Comes when the daemon has no descriptor left, for a moment.
    ComesToNoDescriptor,
}

/// What is in the way of a notification.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FullCall {
    Eventfd,
    Pipe,
}

/// One step.
#[derive(Clone, Debug, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Step {
    /// The guest writes a pattern of this generation to a page.
    Write {
        page: usize,
        generation: u16,
    },
    /// The guest reports, in one chain, each span a descriptor.
    Report(Named),
    /// The guest puts pages into the balloon, or takes them out.
    Inflate(Named),
    Deflate {
        spans: Vec<Span>,
    },
    /// The operator starts and stops a round of hinting.
    StartHinting,
    StopHinting,
    /// The driver sends back the command that it reads, names pages, ends.
    BeginHints,
    Hint(Named),
    EndHints,
    /// The driver says what its free pages hold.
    Poison {
        value: u32,
    },
    /// The daemon ends with a report under way, and the next one has to end it.
    KillOverReport {
        spans: Vec<Span>,
    },
    /// The operator.
    Pause,
    Resume,
    /// Reclaims and pauses, in one request that is answered when the guest has said what it has.
    Park,
    Unpark,
    Pin {
        page: usize,
    },
    Unpin {
        page: usize,
    },
    Target {
        bytes: u64,
        force: bool,
    },
    /// The statistics are asked for, or how often they are.
    Refresh,
    Interval {
        seconds: u32,
    },
    /// Time passes.
    Advance {
        seconds: u32,
    },
    /// An operator looks at the status.
    Look,
    Client(Client),
    /// The VMM migrates, or does not any more.
    Migrate {
        on: bool,
    },
    /// The VMM unplugs the memory of a region, or plugs it in again.
    Unplug {
        region: usize,
    },
    Plug {
        region: usize,
    },
    /// The VMM seals the second file: nothing of it can be discarded from then on.
    Seal,
    /// The VMM disconnects and connects again, under the same driver.
    Reconnect,
    /// A report whose notification finds no room.
    FullCall {
        call: FullCall,
        span: Span,
    },
    /// System calls end early, from now on.
    Weather(Weather),
}

fn span() -> impl Strategy<Value = Span> {
    (0..PAGES, 1..=4_u8, prop::bool::weighted(0.2)).prop_map(|(first, pages, cut)| Span {
        first,
        pages,
        cut,
    })
}

fn spans() -> impl Strategy<Value = Vec<Span>> {
    prop::collection::vec(span(), 1..=MOST_SPANS)
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let errno = prop::sample::select(
        &[libc::EINTR, libc::ENOSPC, libc::EIO, libc::ENOMEM, libc::EAGAIN, libc::EOPNOTSUPP][..],
    );
    let calls = prop_oneof![Just(Calls::All), (0..3_usize).prop_map(Calls::One)];
    (errno, calls).prop_map(|(errno, calls)| Refusal { errno, calls })
}

fn named() -> impl Strategy<Value = Named> {
    (spans(), prop::option::weighted(0.2, refusal()))
        .prop_map(|(spans, refusal)| Named { spans, refusal })
}

fn client() -> impl Strategy<Value = Client> {
    prop_oneof![
        4 => (1..40_usize).prop_map(Client::InPieces),
        2 => Just(Client::HangsUp),
        2 => Just(Client::TakesNoAnswer),
        1 => Just(Client::Silent),
        2 => Just(Client::ComesToNoDescriptor),
    ]
}

/// Any step, whether it is possible or not.
pub(super) fn any_step(home: Home) -> BoxedStrategy<Step> {
    // Where much is to survive it, it happens often.
    let kills = if home == Home::Kept { 8 } else { 1 };
    let pinned = || prop::sample::select(&PINNED[..]);
    // The first holds the rings.
    let region = || 1..REGIONS;
    let pages = (0..PAGES, 1..1000_u16);
    let memory = prop_oneof![
        60 => pages.prop_map(|(page, generation)| Step::Write { page, generation }),
        50 => named().prop_map(Step::Report),
        15 => named().prop_map(Step::Inflate),
        5 => spans().prop_map(|spans| Step::Deflate { spans }),
        5 => Just(Step::StartHinting),
        3 => Just(Step::StopHinting),
        6 => Just(Step::BeginHints),
        12 => named().prop_map(Step::Hint),
        3 => Just(Step::EndHints),
        2 => Just(Step::Poison { value: 0 }),
        1 => Just(Step::Poison { value: 0xaaaa_aaaa }),
        kills => spans().prop_map(|spans| Step::KillOverReport { spans }),
        2 => (prop_oneof![Just(FullCall::Eventfd), Just(FullCall::Pipe)], span())
            .prop_map(|(call, span)| Step::FullCall { call, span }),
    ];
    let operator = prop_oneof![
        4 => Just(Step::Pause),
        6 => Just(Step::Resume),
        2 => Just(Step::Park),
        4 => Just(Step::Unpark),
        8 => pinned().prop_map(|page| Step::Pin { page }),
        8 => pinned().prop_map(|page| Step::Unpin { page }),
        5 => (0..12_u64, any::<bool>())
            .prop_map(|(some, force)| Step::Target { bytes: some * 3 * MIB, force }),
        4 => Just(Step::Refresh),
        3 => prop::sample::select(&[0, 10, 60][..]).prop_map(|seconds| Step::Interval { seconds }),
        8 => prop::sample::select(&[1, 10, 90, 3600][..])
            .prop_map(|seconds| Step::Advance { seconds }),
        5 => Just(Step::Look),
        4 => client().prop_map(Step::Client),
    ];
    let vmm = prop_oneof![
        12 => any::<bool>().prop_map(|on| Step::Migrate { on }),
        6 => region().prop_map(|region| Step::Unplug { region }),
        6 => region().prop_map(|region| Step::Plug { region }),
        1 => Just(Step::Seal),
        4 => Just(Step::Reconnect),
        4 => prop::sample::select(&Weather::ALL[..]).prop_map(Step::Weather),
    ];
    prop_oneof![70 => memory, 20 => operator, 10 => vmm].boxed()
}
