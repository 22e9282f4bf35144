// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files of the daemon's room `vhost_user::vring`.

#![expect(dead_code, reason = "the daemon uses the rest")]

#[path = "../../../src/vhost_user/vring/owed.rs"]
pub(crate) mod owed;
#[path = "../../../src/vhost_user/vring/turns.rs"]
pub(crate) mod turns;
