// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs each program in every interleaving. With `--nocapture` the number of them is printed.

use interleavings::{in_turn, inhibit, owed, turns, writers_first};

/// A program that has one interleaving only shows nothing.
fn explored(program: fn() -> usize, name: &str) {
    let interleavings = program();
    println!("{name}: {interleavings} interleavings");
    assert!(interleavings > 1, "{name} explores nothing");
}

macro_rules! programs {
    ($($room:ident: $($name:ident)+;)+) => {
        $($(
            #[test]
            fn $name() {
                explored($room::$name, stringify!($name));
            }
        )+)+
    };
}

programs! {
    in_turn: record_never_falls_behind_the_device;
    inhibit: pause_waits_for_the_call_under_way pause_is_answered_by_event
        pin_is_answered_by_event pause_of_two_causes_outlives_one;
    owed: call_that_comes_late_is_signalled call_that_is_replaced_is_signalled_again
        call_that_fails_leaves_the_debt;
    turns: message_goes_before_the_next_chain message_is_followed_by_a_pause;
    writers_first: waiting_writer_goes_first memory_table_ends_an_endless_discard;
}
