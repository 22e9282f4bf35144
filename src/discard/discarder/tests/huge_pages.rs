// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of the balloon that are collected to huge pages.

use super::*;

const HUGE: u64 = 2 << 20;

/// Four huge pages from 1 GiB on. None of them is touched, so the host's pool may be empty.
fn huge_memory() -> Option<Arc<GuestMemory>> {
    use rustix::fs::{MemfdFlags, memfd_create};
    let flags = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB | MemfdFlags::CLOEXEC;
    let file = File::from(memfd_create("huge", flags).ok()?);
    file.set_len(4 * HUGE).ok()?;
    let region = MmapRegion::from_file(FileOffset::new(file, 0), 4 << 21).ok()?;
    let region = GuestRegionMmap::new(region, GuestAddress(1 << 30)).unwrap();
    Some(Arc::new(GuestMemory::from_regions(vec![region]).unwrap()))
}

/// A huge page is discarded as a whole, however small the calls are to be.
#[test]
fn call_limit_below_a_huge_page_takes_the_page() {
    let Some(memory) = huge_memory() else { return };
    let recorder = Arc::new(Recorder::default());
    let most_bytes_a_call = Some(PAGE);
    let options = MemoryOptions { hugetlb: true, most_bytes_a_call, ..MemoryOptions::default() };
    let reclaimer = Reclaimer::new(Arc::clone(&recorder), options, Arc::default(), Arc::default());
    reclaimer.set_memory(memory).unwrap();
    reclaimer.snapshot().discard(&mut ranges(&[(1 << 30, 2 * HUGE)]));
    assert_eq!(*recorder.calls.lock().unwrap(), [(0, HUGE), (HUGE, HUGE)]);
}

/// What a driver and its VMM do with the balloon, in pages from the start of memory.
#[derive(Clone, Debug)]
enum Step {
    Inflate(Vec<(u64, u64)>),
    Deflate(Vec<(u64, u64)>),
    /// The pages cannot be told.
    DeflateUnknown,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lists = || prop::collection::vec((0u64..2048, prop_oneof![1u64..4, 200u64..1200]), 1..4);
    let step = prop_oneof![
        6 => lists().prop_map(Step::Inflate),
        2 => lists().prop_map(Step::Deflate),
        1 => Just(Step::DeflateUnknown),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    /// Against a set of pages: a huge page is discarded exactly when a chain inflates part of it and
    /// all of it is in the balloon, whatever came and went before.
    #[test]
    fn huge_pages_go_when_all_of_them_is_in_the_balloon(steps in steps()) {
        let Some(memory) = huge_memory() else { return Ok(()) };
        let places = Arc::new(Places::default());
        let recorder = Arc::new(Recorder::default());
        let options = MemoryOptions { hugetlb: true, ..MemoryOptions::default() };
        let (inhibit, counters) = (Arc::default(), Arc::<Counters>::default());
        let reclaimer =
            Reclaimer::new(Arc::clone(&recorder), options, inhibit, Arc::clone(&counters))
                .keeping(Arc::clone(&places) as _);
        reclaimer.set_memory(memory).unwrap();
        let mut inside = std::collections::HashSet::new();
        let ranges = |list: &[(u64, u64)]| -> Vec<GuestRange> {
            let range = |&(page, pages): &(u64, u64)| {
                GuestRange::new((1 << 30) + page * PAGE, pages.min(2048 - page) * PAGE).unwrap()
            };
            list.iter().map(range).collect()
        };
        let pages = |list: &[(u64, u64)]| -> Vec<u64> {
            list.iter().flat_map(|&(page, pages)| page..(page + pages).min(2048)).collect()
        };
        for step in steps {
            let mut expected = Vec::new();
            match step {
                Step::Inflate(list) => {
                    inside.extend(pages(&list));
                    let touched: std::collections::BTreeSet<u64> =
                        pages(&list).into_iter().map(|page| page / 512).collect();
                    for huge in touched {
                        if (huge * 512..(huge + 1) * 512).all(|page| inside.contains(&page)) {
                            expected.extend(huge * 512..(huge + 1) * 512);
                        }
                    }
                    reclaimer.snapshot().inflate_while(&mut ranges(&list), &mut Zeroed::default(), || true);
                }
                Step::Deflate(list) => {
                    for page in pages(&list) {
                        inside.remove(&page);
                    }
                    reclaimer.snapshot().deflate(Some(&ranges(&list)));
                }
                Step::DeflateUnknown => {
                    inside.clear();
                    reclaimer.snapshot().deflate(None);
                }
                Step::Restart => {
                    inside.clear();
                    places.set(&[]);
                    // It is noticed with the next chain.
                    continue;
                }
            }
            prop_assert_eq!(calls(&recorder), expected);
            let in_page = |huge: u64| inside.iter().filter(|page| **page / 512 == huge).count();
            let waiting: usize = (0..4).map(in_page).filter(|pages| *pages < 512).sum();
            prop_assert_eq!(counters.collecting(), waiting as u64 * PAGE);
        }
    }
}
