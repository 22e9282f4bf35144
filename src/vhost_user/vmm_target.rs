// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A target that comes from the VMM: `num_pages`, written with `VHOST_USER_SET_CONFIG`.
//!
//! A guest cannot write the field, and a backend must not accept a write of such a field unless it
//! comes with the flag of migration (vhost-user protocol, "Virtio device config space"). That flag is 1,
//! and what a guest writes comes with 0. The framework drops the flags and has names for other values
//! (vhost 0.18), and cloud-hypervisor sends what a guest writes with 1. So this is an option.

use vhost::vhost_user::message::FrontendReq;

use super::message::Message;

/// `VHOST_SET_CONFIG_TYPE_MIGRATION` of QEMU.
const MIGRATION: u32 = 1;
/// Bytes of `VhostUserConfig`: offset, size, flags.
const HEAD: usize = 12;

/// The pages that a message wants in the balloon, if it may say so: it writes the whole field.
pub(super) fn pages(message: &Message) -> Option<u32> {
    if message.request() != FrontendReq::SET_CONFIG as u32 {
        return None;
    }
    let payload = message.payload();
    let word = |at: usize| payload.get(at..)?.first_chunk().copied();
    let (offset, flags) = (u32::from_ne_bytes(word(0)?), u32::from_ne_bytes(word(8)?));
    // `num_pages` is the first field, in little-endian order.
    (offset == 0 && flags == MIGRATION).then(|| word(HEAD).map(u32::from_le_bytes))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(request: FrontendReq, offset: u32, flags: u32, bytes: &[u8]) -> Option<u32> {
        let size = u32::try_from(bytes.len()).unwrap();
        let payload = [offset, size, flags].map(u32::to_ne_bytes).concat();
        let payload = [payload.as_slice(), bytes].concat();
        let head = [request as u32, 1, u32::try_from(payload.len()).unwrap()];
        let mut message = Message::new();
        message.set(&[head.map(u32::to_ne_bytes).concat(), payload].concat(), []);
        pages(&message)
    }

    #[test]
    fn only_a_whole_field_of_migration_counts() {
        let field = 0x0403_0201_u32.to_le_bytes();
        let set = FrontendReq::SET_CONFIG;
        assert_eq!(of(set, 0, 1, &field), Some(0x0403_0201));
        assert_eq!(of(set, 0, 1, &[field, [9; 4]].concat()), Some(0x0403_0201));
        assert_eq!(of(set, 0, 0, &field), None, "what a guest writes");
        assert_eq!(of(set, 0, 2, &field), None, "what vhost calls migration");
        assert_eq!(of(set, 0, 1, &field[..3]), None);
        assert_eq!(of(set, 4, 1, &field), None);
        assert_eq!(of(FrontendReq::GET_CONFIG, 0, 1, &field), None);
    }
}
