// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space: `struct virtio_balloon_config` (virtio 1.3, section 5.5.4).

/// Size of the configuration space in bytes, `poison_val` included.
pub(crate) const CONFIG_SPACE_SIZE: usize = 16;

/// Bytes of a page of the balloon, whatever the guest's or the host's pages are (5.5.6).
pub(crate) const BALLOON_PAGE_SIZE: u64 = 4096;

/// Why the balloon cannot be made that large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    /// Not a whole number of pages.
    #[error("the balloon's size is a multiple of {BALLOON_PAGE_SIZE} bytes, {0} is none")]
    NotPages(u64),
    /// More pages than `num_pages` can say.
    #[error("the balloon has at most {max} bytes, {0} are more", max = MAX_BALLOON_BYTES)]
    TooLarge(u64),
}

/// The most bytes that `num_pages` can ask for: 16 TiB less a page.
pub(crate) const MAX_BALLOON_BYTES: u64 = u32::MAX as u64 * BALLOON_PAGE_SIZE;

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
/// default is a space of which no driver has said anything: it may have told another daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConfigSpace {
    bytes: [u8; CONFIG_SPACE_SIZE],
    actual_is_known: bool,
    poison_is_known: bool,
}

impl ConfigSpace {
    /// `size` bytes from `offset` on; zeros past the end.
    ///
    /// Always as many as were asked for: an answer of another length makes a frontend fail the
    /// guest's read, and cloud-hypervisor end the guest.
    pub(crate) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let at = |i: u32| offset.checked_add(i).and_then(|i| usize::try_from(i).ok());
        (0..size).map(|i| at(i).and_then(|i| self.bytes.get(i)).copied().unwrap_or(0)).collect()
    }

    /// Takes over what a driver may write, `actual` and `poison_val`, and ignores the rest.
    ///
    /// QEMU sends the whole space after any write of the guest, with what it has read here in the
    /// fields that the guest did not write. So a field counts as told where the write begins in it or
    /// changes it; of a driver that begins (`begins`) `poison_val` counts in any case, since that is
    /// what such a driver writes.
    pub(crate) fn write(&mut self, offset: u32, bytes: &[u8], begins: bool) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let before = *self;
        let mut poison_is_written = false;
        for (i, byte) in bytes.iter().enumerate() {
            let Some(at) = offset.checked_add(i) else { break };
            if ACTUAL.contains(&at) || POISON_VAL.contains(&at) {
                self.bytes[at] = *byte;
                poison_is_written |= POISON_VAL.contains(&at);
            }
        }
        let begins_in =
            |field: std::ops::Range<usize>| field.contains(&offset) && !bytes.is_empty();
        self.actual_is_known |= begins_in(ACTUAL) || self.actual() != before.actual();
        self.poison_is_known |=
            begins_in(POISON_VAL) || self.poison_val() != 0 || (begins && poison_is_written);
    }

    /// The same as it is for a driver that begins: nothing is in its balloon.
    pub(super) fn for_a_driver_that_begins(mut self) -> Self {
        self.set(ACTUAL, 0);
        self
    }

    /// Pages of 4 KiB that the device wants in the balloon.
    pub(crate) fn num_pages(&self) -> u32 {
        self.get(NUM_PAGES)
    }

    /// What a driver reads back as `actual`.
    pub(crate) fn actual(&self) -> u32 {
        self.get(ACTUAL)
    }

    /// Pages of 4 KiB that the driver says are in the balloon: a guest's word, not a measure. `None`
    /// where it may have said so to another daemon, and has not changed it since.
    pub(crate) fn told_actual(&self) -> Option<u32> {
        self.actual_is_known.then(|| self.actual())
    }

    /// Which round of hinting the device wants.
    pub(crate) fn free_page_hint_cmd_id(&self) -> u32 {
        self.get(HINT_CMD_ID)
    }

    /// What the driver fills its free pages with; counts only if it acked `PAGE_POISON`.
    pub(crate) fn poison_val(&self) -> u32 {
        self.get(POISON_VAL)
    }

    /// Whether `poison_val` is the driver's. One that acks `PAGE_POISON` writes it before `DRIVER_OK`
    /// (5.5.6.6.1), but one that has outlived a daemon does not write it again for the next, and no
    /// ring can tell the two apart: an index that reads 0 may have been passed 65536 times.
    pub(crate) fn poison_is_known(&self) -> bool {
        self.poison_is_known
    }

    /// The frontend has reset the device: what the next driver does not write is zero.
    pub(super) fn reset(&mut self) {
        self.set_actual(Some(0));
        self.set_poison_val(Some(0));
    }

    pub(super) fn set_num_pages(&mut self, pages: u32) {
        self.set(NUM_PAGES, pages);
    }

    /// Sets `actual`, or forgets it.
    pub(super) fn set_actual(&mut self, pages: Option<u32>) {
        self.set(ACTUAL, pages.unwrap_or(0));
        self.actual_is_known = pages.is_some();
    }

    pub(super) fn set_free_page_hint_cmd_id(&mut self, id: u32) {
        self.set(HINT_CMD_ID, id);
    }

    /// Sets `poison_val`, or forgets it.
    pub(super) fn set_poison_val(&mut self, value: Option<u32>) {
        self.set(POISON_VAL, value.unwrap_or(0));
        self.poison_is_known = value.is_some();
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
        config.write(0, &[0xff; CONFIG_SPACE_SIZE], false);
        assert_eq!(config.read(0, 16), [[0; 4], [0xff; 4], [0; 4], [0xff; 4]].concat());
        assert_eq!(config.poison_val(), u32::MAX);
    }

    #[test]
    fn fields_may_be_written_in_part() {
        let mut config = ConfigSpace::default();
        config.write(12, &[0xaa], false);
        config.write(15, &[0x01, 0xff, 0xff], false);
        assert_eq!(config.poison_val(), 0x0100_00aa);
    }

    #[test]
    fn the_device_writes_what_the_driver_reads() {
        let mut config = ConfigSpace::default();
        config.set_num_pages(0x0403_0201);
        config.set_actual(Some(0x0807_0605));
        config.set_free_page_hint_cmd_id(0x0c0b_0a09);
        config.set_poison_val(Some(0x100f_0e0d));
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

    /// As QEMU passes a write of the guest on: with all that it has read.
    fn whole(config: &ConfigSpace, actual: u32, poison: u32) -> Vec<u8> {
        let mut bytes = config.read(0, 16);
        bytes[ACTUAL].copy_from_slice(&actual.to_le_bytes());
        bytes[POISON_VAL].copy_from_slice(&poison.to_le_bytes());
        bytes
    }

    #[test]
    fn what_a_frontend_has_only_read_is_not_told() {
        let mut config = ConfigSpace::default();
        assert_eq!((config.told_actual(), config.poison_is_known()), (None, false));
        config.write(0, &whole(&config, 0, 0), false);
        assert_eq!((config.told_actual(), config.poison_is_known()), (None, false));
        config.write(0, &whole(&config, 7, 0), false);
        assert_eq!((config.told_actual(), config.poison_is_known()), (Some(7), false));
        // Back to what it was: it has said so.
        config.write(0, &whole(&config, 0, 0), false);
        assert_eq!(config.told_actual(), Some(0));
        config.write(0, &whole(&config, 0, 3), false);
        assert!(config.poison_is_known());
    }

    #[test]
    fn poison_written_during_setup_is_known_even_if_zero() {
        let mut config = ConfigSpace::default();
        config.write(0, &whole(&config, 0, 0), true);
        assert_eq!((config.told_actual(), config.poison_is_known()), (None, true));
        // What does not reach it says nothing of it.
        let mut config = ConfigSpace::default();
        config.write(0, &[0; 12], true);
        assert!(!config.poison_is_known());
    }

    #[test]
    fn a_field_that_is_written_alone_is_told() {
        let mut config = ConfigSpace::default();
        config.write(4, &[0; 4], false);
        assert_eq!((config.told_actual(), config.poison_is_known()), (Some(0), false));
        config.write(12, &[0; 4], false);
        assert!(config.poison_is_known());
        config.write(12, &[], false);
        let mut untold = ConfigSpace::default();
        untold.write(12, &[], true);
        untold.write(4, &[], false);
        assert_eq!((untold.told_actual(), untold.poison_is_known()), (None, false));
    }

    #[test]
    fn after_a_reset_everything_is_known_to_be_zero() {
        let mut config = ConfigSpace::default();
        config.write(0, &[9; 16], false);
        config.reset();
        assert_eq!((config.told_actual(), config.poison_val()), (Some(0), 0));
        assert!(config.poison_is_known());
    }

    #[test]
    fn reads_past_the_end_are_zeros() {
        let mut config = ConfigSpace::default();
        config.write(12, &[1, 2, 3, 4], false);
        assert_eq!(config.read(14, 6), [3, 4, 0, 0, 0, 0]);
        assert_eq!(config.read(u32::MAX, 3), [0; 3]);
    }

    proptest! {
        #[test]
        fn any_access_is_answered(offset: u32, size in 0u32..300, bytes: Vec<u8>) {
            let mut config = ConfigSpace::default();
            config.write(offset, &bytes, false);
            prop_assert_eq!(config.read(offset, size).len(), size as usize);
        }
    }
}
