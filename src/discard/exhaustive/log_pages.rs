// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bits of the dirty log.

use super::super::log_pages::{LOG_PAGE, LogPages, place};

/// Numbers of bytes around the borders of the first pages.
fn around(pages: usize) -> Vec<usize> {
    let near = |page: usize| [0, 1, LOG_PAGE / 2, LOG_PAGE - 1].map(|byte| page * LOG_PAGE + byte);
    (0..pages).flat_map(near).collect()
}

/// A page is marked if and only if a byte of it was written, whatever address the region begins at.
#[test]
fn log_bits_agree_with_a_page_oracle() {
    let mut cases = 0;
    let starts =
        around(3).into_iter().chain([usize::MAX - 2 * LOG_PAGE, usize::MAX - 2 * LOG_PAGE - 1]);
    for start in starts {
        for len in around(3) {
            let region = LogPages::new(start, len);
            assert_eq!(region.is_some(), len > 0 && start.checked_add(len - 1).is_some());
            let Some(region) = region else { continue };
            let ends = || around(4).into_iter().chain([usize::MAX - 1, usize::MAX]);
            for from in ends() {
                for to in ends().filter(|to| from <= *to) {
                    let last = start + (len - 1);
                    let page = |page: &usize| {
                        let (first, past) = (page * LOG_PAGE, page * LOG_PAGE + (LOG_PAGE - 1));
                        let written_from = start.saturating_add(from);
                        let written_to = start.saturating_add(to).min(last);
                        written_from <= written_to && first <= written_to && written_from <= past
                    };
                    let near = start / LOG_PAGE..=last / LOG_PAGE;
                    let expected: Vec<_> = near.filter(page).collect();
                    let bits: Vec<_> = region.bits(from, to).collect();
                    assert_eq!(bits, expected, "{region:x?} {from:#x} {to:#x}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 25_650);
}

/// As QEMU and the kernel read the log: bit after bit, the lowest of a byte first.
#[test]
fn log_bits_lie_one_after_another() {
    let mut next = 0;
    for byte in 0..1024 {
        for bit in 0..8 {
            assert_eq!(place(next), (byte, 1 << bit));
            next += 1;
        }
    }
    assert_eq!(place(usize::MAX), (usize::MAX / 8, 128));
}
