//! The configuration space: `struct virtio_balloon_config` (virtio 1.3, section 5.5.4).

/// Size of the configuration space in bytes, `poison_val` included.
pub const CONFIG_SPACE_SIZE: usize = 16;

/// Bytes of a page of the balloon, whatever the guest's or the host's pages are (5.5.6).
pub const BALLOON_PAGE_SIZE: u64 = 4096;

/// Why the balloon cannot be made that large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a whole number of pages.
    #[error("the balloon's size is a multiple of {BALLOON_PAGE_SIZE} bytes, {0} is none")]
    NotPages(u64),
    /// More pages than `num_pages` can say.
    #[error("the balloon has at most {max} bytes, {0} are more", max = MAX_BALLOON_BYTES)]
    TooLarge(u64),
}

/// The most bytes that `num_pages` can ask for: 16 TiB less a page.
pub const MAX_BALLOON_BYTES: u64 = u32::MAX as u64 * BALLOON_PAGE_SIZE;

/// `bytes` in pages of the balloon.
pub(super) fn pages(bytes: u64) -> Result<u32, TargetError> {
    if !bytes.is_multiple_of(BALLOON_PAGE_SIZE) {
        return Err(TargetError::NotPages(bytes));
    }
    u32::try_from(bytes / BALLOON_PAGE_SIZE).map_err(|_| TargetError::TooLarge(bytes))
}

/// Where `num_pages` lies: the pages that the device wants in the balloon.
const NUM_PAGES: std::ops::Range<usize> = 0..4;
/// Where `actual` lies: the pages that the driver says it has given to the balloon.
const ACTUAL: std::ops::Range<usize> = 4..8;
/// Where `free_page_hint_cmd_id` lies: which round of hinting the device wants.
const HINT_CMD_ID: std::ops::Range<usize> = 8..12;
/// Where `poison_val` lies: what the driver fills its free pages with.
const POISON_VAL: std::ops::Range<usize> = 12..16;

/// `num_pages`, `actual`, `free_page_hint_cmd_id` and `poison_val`, each a little-endian `u32`. The
/// default is an empty balloon that no driver has touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SPACE_SIZE],
    poison_is_known: bool,
}

impl ConfigSpace {
    /// `size` bytes from `offset` on; zeros past the end.
    ///
    /// Always as many as were asked for: an answer of another length makes a frontend fail the
    /// guest's read, and cloud-hypervisor end the guest.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let at = |i: u32| offset.checked_add(i).and_then(|i| usize::try_from(i).ok());
        (0..size).map(|i| at(i).and_then(|i| self.bytes.get(i)).copied().unwrap_or(0)).collect()
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
                self.bytes[at] = *byte;
            }
        }
        // A zero among other fields may be what the frontend has read here.
        let of_its_own = POISON_VAL.contains(&offset) && !bytes.is_empty();
        self.poison_is_known |= of_its_own || self.poison_val() != 0;
    }

    /// Pages of 4 KiB that the device wants in the balloon.
    pub fn num_pages(&self) -> u32 {
        self.get(NUM_PAGES)
    }

    /// Pages of 4 KiB that the driver says are in the balloon: a guest's word, not a measure.
    pub fn actual(&self) -> u32 {
        self.get(ACTUAL)
    }

    /// Which round of hinting the device wants.
    pub fn free_page_hint_cmd_id(&self) -> u32 {
        self.get(HINT_CMD_ID)
    }

    /// What the driver fills its free pages with; counts only if it acked `PAGE_POISON`.
    pub fn poison_val(&self) -> u32 {
        self.get(POISON_VAL)
    }

    /// Whether `poison_val` is the driver's. One that acks `PAGE_POISON` writes it before `DRIVER_OK`
    /// (5.5.6.6.1), but one that has outlived a daemon does not write it again for the next.
    pub fn poison_is_known(&self) -> bool {
        self.poison_is_known
    }

    /// The driver has begun since this device is there: what it has not written is zero.
    pub(super) fn know_poison(&mut self) {
        self.poison_is_known = true;
    }

    /// Whatever driver comes next has said nothing yet.
    pub(super) fn forget_driver(&mut self) {
        self.set_actual(0);
        self.set_poison_val(0);
        self.poison_is_known = false;
    }

    pub(super) fn set_num_pages(&mut self, pages: u32) {
        self.set(NUM_PAGES, pages);
    }

    pub(super) fn set_actual(&mut self, pages: u32) {
        self.set(ACTUAL, pages);
    }

    pub(super) fn set_free_page_hint_cmd_id(&mut self, id: u32) {
        self.set(HINT_CMD_ID, id);
    }

    pub(super) fn set_poison_val(&mut self, value: u32) {
        self.set(POISON_VAL, value);
    }

    fn get(&self, field: std::ops::Range<usize>) -> u32 {
        self.bytes[field].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn set(&mut self, field: std::ops::Range<usize>, value: u32) {
        self.bytes[field].copy_from_slice(&value.to_le_bytes());
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
    fn the_device_writes_what_the_driver_reads() {
        let mut config = ConfigSpace::default();
        config.set_num_pages(0x0403_0201);
        config.set_actual(0x0807_0605);
        config.set_free_page_hint_cmd_id(0x0c0b_0a09);
        config.set_poison_val(0x100f_0e0d);
        assert_eq!(config.read(0, 16), (1..=16).collect::<Vec<u8>>());
        assert_eq!((config.num_pages(), config.actual()), (0x0403_0201, 0x0807_0605));
        assert_eq!(config.free_page_hint_cmd_id(), 0x0c0b_0a09);
        assert_eq!(config.poison_val(), 0x100f_0e0d);
    }

    #[test]
    fn the_balloon_is_counted_in_pages() {
        assert_eq!(pages(0), Ok(0));
        assert_eq!(pages(MAX_BALLOON_BYTES), Ok(u32::MAX));
        assert_eq!(pages(MAX_BALLOON_BYTES + 1), Err(TargetError::NotPages(MAX_BALLOON_BYTES + 1)));
        assert_eq!(pages(1 << 44), Err(TargetError::TooLarge(1 << 44)));
        assert_eq!(pages(4095), Err(TargetError::NotPages(4095)));
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
