// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of the balloon that are added up.

use super::super::collected::Collected;
use super::super::regions::Region;
use super::{GuestRange, Space, ones};

const BALLOON_PAGE: u64 = 4096;
/// Pages of the balloon in a page of the file.
const IN_A_PAGE: u64 = 4;
const PAGE: u64 = IN_A_PAGE * BALLOON_PAGE;

/// A region of a file that begins at page `first` of the balloon's size, at guest page `gpa`.
struct Shown {
    first: u64,
    pages: u64,
    gpa: u64,
}

/// All of a file of two pages, and its second page at another address.
const SHOWN: [Shown; 2] =
    [Shown { first: 0, pages: 8, gpa: 0x100 }, Shown { first: 4, pages: 4, gpa: 0x200 }];

impl Shown {
    fn region(&self) -> Region {
        let range = self.range(self.first, self.pages);
        Region::of(range, self.first * BALLOON_PAGE, PAGE)
    }

    /// Pages of the file, in guest addresses.
    fn range(&self, first: u64, pages: u64) -> GuestRange {
        let gpa = (self.gpa + first - self.first) * BALLOON_PAGE;
        GuestRange::new(gpa, pages * BALLOON_PAGE).unwrap()
    }

    /// Every run of pages that it shows: as a range and as bits.
    fn runs(&self) -> impl Iterator<Item = (GuestRange, u64)> {
        let space = Space { base: self.first, bytes: self.pages };
        space
            .ranges()
            .map(|run| (self.range(run.start(), run.len()), ones(run.len()) << run.start()))
    }
}

/// The pages of the file that `pages` of the balloon fill.
fn filled(pages: u64) -> u64 {
    let page = |index: u64| ones(IN_A_PAGE) << (index * IN_A_PAGE);
    (0..2).map(page).filter(|page| pages & page == *page).sum()
}

fn waiting_bytes(pages: u64) -> u64 {
    u64::from((pages & !filled(pages)).count_ones()) * BALLOON_PAGE
}

/// Every state there is, and whatever may come then: by that any sequence.
#[test]
fn collected_every_state_follows_a_set_of_pages() {
    let mut cases = 0;
    for before in 0..=ones(8) {
        for shown in &SHOWN {
            let region = shown.region();
            for (range, run) in shown.runs() {
                let [mut inflated, mut deflated] = [(); 2].map(|()| reached(before));
                assert_eq!(inflated.waiting_bytes(), waiting_bytes(before));
                let mut full = Vec::new();
                let waiting = inflated.inflate(&region, range, &mut full);
                let after = before | run;
                assert_eq!(inflated.waiting_bytes(), waiting_bytes(after));
                let kept = u64::from((run & !filled(after)).count_ones());
                assert_eq!(waiting, kept * BALLOON_PAGE, "{before:b} {run:b}");
                let touched =
                    [0, 4].into_iter().filter(|first| run >> first & ones(IN_A_PAGE) != 0);
                let pages = touched.filter(|first| filled(after) >> first & 1 != 0);
                let pages: Vec<_> = pages.map(|first| shown.range(first, IN_A_PAGE)).collect();
                assert_eq!(full, pages, "{before:b} {run:b}");
                deflated.deflate(&region, range);
                assert_eq!(deflated.waiting_bytes(), waiting_bytes(before & !run));
                cases += 2;
            }
        }
    }
    assert_eq!(cases, 23_552);
}

/// The state in which just these pages are in the balloon.
fn reached(pages: u64) -> Collected {
    let mut collected = Collected::default();
    let region = SHOWN[0].region();
    for page in (0..8).filter(|page| pages >> page & 1 != 0) {
        let _ = collected.inflate(&region, SHOWN[0].range(page, 1), &mut Vec::new());
    }
    collected
}

/// A bit in each place of each word.
#[test]
fn collected_huge_page_is_full_with_its_last_page() {
    let pages = 512;
    let whole = GuestRange::new(0, pages * BALLOON_PAGE).unwrap();
    let region = Region::of(whole, 0, pages * BALLOON_PAGE);
    let part = |first: u64, past: u64| {
        GuestRange::new(first * BALLOON_PAGE, (past - first) * BALLOON_PAGE).ok()
    };
    for last in 0..pages {
        let (mut collected, mut full) = (Collected::default(), Vec::new());
        for others in [part(0, last), part(last + 1, pages)].into_iter().flatten() {
            assert_eq!(collected.inflate(&region, others, &mut full), others.len());
        }
        assert_eq!((full.len(), collected.waiting_bytes()), (0, (pages - 1) * BALLOON_PAGE));
        let page = part(last, last + 1).unwrap();
        assert_eq!(collected.inflate(&region, page, &mut full), 0);
        assert_eq!((full, collected.waiting_bytes()), (vec![whole], 0));
    }
}
