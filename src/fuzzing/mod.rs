// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The door through which the fuzz targets of `fuzz/` reach the rooms. It is there only with
//! `--cfg fuzzing`, as `cargo fuzz` and `cargo xtask fuzz` set it: no release has it.
//!
//! Each target makes its input of bytes, has the daemon's own code do something with it, and checks that
//! against an oracle which knows nothing of that code.

mod chains;
mod command_line;
mod guest;
mod handler;
mod hinting;
mod lists;
mod model;
mod requests;
mod rings;
mod saved;
mod statistics;

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};

use crate::discard::fuzzing as ranges;
use crate::hand_over::fuzzing as left_over;
use crate::vhost_user::fuzzing::{relay, shapes};

/// Whether each input is printed, as for one that fails.
static PRINTS: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_PRINT").is_some());

/// One fuzz target.
macro_rules! targets {
    ($($(#[$about:meta])* $name:ident;)*) => {
        $(
            $(#[$about])*
            pub fn $name(bytes: &[u8]) {
                if let Ok(input) = $name::Input::arbitrary_take_rest(Unstructured::new(bytes)) {
                    if *PRINTS {
                        eprintln!("{input:#?}");
                    }
                    $name::run(input);
                }
            }
        )*
    };
}

targets! {
    /// One chain on any queue, with anything in guest memory.
    chains;
    /// A command line.
    command_line;
    /// A session: messages of a frontend and chains of a driver, over memory that is shared.
    handler;
    /// Rounds of hinting.
    hinting;
    /// What a daemon leaves to the next one.
    left_over;
    /// Pages that go into the balloon and come out of it.
    lists;
    /// What is discarded of ranges on regions with pins.
    ranges;
    /// Messages between a frontend and the framework.
    relay;
    /// Requests of control clients.
    requests;
    /// One virtqueue from its start to its end.
    rings;
    /// The device's state on its way to another daemon.
    saved;
    /// A message, before our rules for its shape and before the framework's.
    shapes;
    /// Statistics as a driver sends them.
    statistics;
}
