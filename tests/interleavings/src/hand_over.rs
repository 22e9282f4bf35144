// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of the daemon's room `hand_over`.

#[path = "../../../src/hand_over/in_turn.rs"]
pub(crate) mod in_turn;
