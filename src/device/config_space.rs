//! The configuration space: `struct virtio_balloon_config` (virtio 1.3, section 5.5.4).

/// Size of the configuration space in bytes, `poison_val` included.
pub const CONFIG_SPACE_SIZE: usize = 16;

/// Where `actual` lies: the pages that the driver says it has given to the balloon.
const ACTUAL: std::ops::Range<usize> = 4..8;
/// Where `poison_val` lies: what the driver fills its free pages with.
const POISON_VAL: std::ops::Range<usize> = 12..16;

/// `num_pages`, `actual`, `free_page_hint_cmd_id` and `poison_val`, each a little-endian `u32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace([u8; CONFIG_SPACE_SIZE]);

impl ConfigSpace {
    /// `size` bytes from `offset` on; zeros past the end.
    ///
    /// Always as many as were asked for: an answer of another length makes a frontend fail the
    /// guest's read, and cloud-hypervisor end the guest.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let at = |i: u32| offset.checked_add(i).and_then(|i| usize::try_from(i).ok());
        (0..size).map(|i| at(i).and_then(|i| self.0.get(i)).copied().unwrap_or(0)).collect()
    }

    /// Takes over what a driver may write, `actual` and `poison_val`, and ignores the rest.
    ///
    /// QEMU sends the whole space after any write of the guest, with old values in the fields that
    /// the driver may only read.
    pub fn write(&mut self, offset: u32, bytes: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else { return };
        for (i, byte) in bytes.iter().enumerate() {
            let Some(at) = offset.checked_add(i) else { return };
            if ACTUAL.contains(&at) || POISON_VAL.contains(&at) {
                self.0[at] = *byte;
            }
        }
    }

    /// What the driver fills its free pages with; counts only if it acked `PAGE_POISON`.
    pub fn poison_val(&self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_driver_writes_only_its_own_fields() {
        let mut config = ConfigSpace::default();
        config.write(0, &[0xff; CONFIG_SPACE_SIZE]);
        assert_eq!(config.read(0, 16), [[0; 4], [0xff; 4], [0; 4], [0xff; 4]].concat());
        assert_eq!(config.poison_val(), u32::MAX);
    }

    #[test]
    fn fields_may_be_written_in_part() {
        let mut config = ConfigSpace::default();
        config.write(12, &[0xaa]);
        config.write(15, &[0x01, 0xff, 0xff]);
        assert_eq!(config.poison_val(), 0x0100_00aa);
    }

    #[test]
    fn reads_past_the_end_are_zeros() {
        let mut config = ConfigSpace::default();
        config.write(12, &[1, 2, 3, 4]);
        assert_eq!(config.read(14, 6), [3, 4, 0, 0, 0, 0]);
        assert_eq!(config.read(u32::MAX, 3), [0; 3]);
    }

    proptest! {
        #[test]
        fn any_access_is_answered(offset: u32, size in 0u32..300, bytes: Vec<u8>) {
            let mut config = ConfigSpace::default();
            config.write(offset, &bytes);
            prop_assert_eq!(config.read(offset, size).len(), size as usize);
        }
    }
}
