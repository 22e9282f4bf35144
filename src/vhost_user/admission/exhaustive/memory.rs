// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes and alignments of what lies in a file: regions of guest memory and dirty logs.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::FrontendReq as R;

use super::ask;
use super::messages::{message, payload, use_memory};
use super::things::{file_in, memfd, sources_on_a_disk};
use crate::vhost_user::areas::Area;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

/// A file, the size of its pages, and whether a length must be whole pages.
type Kind = (&'static str, fn() -> Option<OwnedFd>, u64, bool);

const KINDS: [Kind; 4] = [
    ("memfd", || memfd(0), PAGE, false),
    ("tmpfs", || Some(file_in("/dev/shm")), PAGE, false),
    ("disk", || sources_on_a_disk().then(|| file_in(env!("CARGO_MANIFEST_DIR"))), PAGE, false),
    ("huge", || memfd(libc::MFD_HUGETLB), HUGE, true),
];

/// Around the borders of a page and of a file of three.
fn numbers(page: u64) -> Vec<u64> {
    let around = [0, page, 2 * page, 3 * page].into_iter();
    let around = around.flat_map(|at| [at.saturating_sub(1), at, at + 1]);
    around.chain([512, u64::MAX - page + 1, u64::MAX]).collect()
}

/// The rules, in words of files: it has bytes, all of them are there, and it begins on a page.
fn fits(size: u64, offset: u64, bytes: u64, page: u64, whole: bool) -> bool {
    let end = u128::from(offset) + u128::from(bytes);
    let is_whole = |bytes: u64| bytes.is_multiple_of(page);
    bytes > 0 && end <= size.into() && is_whole(offset) && (!whole || is_whole(bytes))
}

#[test]
fn door_every_size_and_offset_follows_the_rules() {
    let (mut cases, mut admitted) = (0, 0);
    for (name, make, page, whole) in KINDS {
        let Some(file) = make() else { continue };
        for size in [0, page, 2 * page, 3 * page] {
            rustix::fs::ftruncate(&file, size).unwrap();
            for offset in numbers(page) {
                for bytes in numbers(page) {
                    for request in [R::ADD_MEM_REG, R::SET_MEM_TABLE, R::SET_LOG_BASE] {
                        // A dirty log is no file of a disk.
                        let allowed = name != "disk" || request != R::SET_LOG_BASE;
                        let expected = allowed && fits(size, offset, bytes, page, whole);
                        let area = Area { gpa: 0, bytes, user: 1 << 40, offset };
                        let asked = message(request as u32, &payload(request, area));
                        let got = ask(&asked, vec![file.try_clone().unwrap()], true);
                        let what = format!("{name} of {size}: {bytes} at {offset}, {request:?}");
                        assert_eq!(got.is_ok(), expected, "{what}: {got:?}");
                        if got.is_ok() {
                            use_memory(&file, offset, bytes, &what);
                        }
                        admitted += usize::from(got.is_ok());
                        cases += 1;
                    }
                }
            }
        }
    }
    println!("{cases} cases, {admitted} admitted");
    assert!(cases > 5_000 && admitted > 100, "{cases} {admitted}");
}
