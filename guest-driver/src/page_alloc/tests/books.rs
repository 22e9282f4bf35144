// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the books agree, whatever is done.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Alloc { cpu: usize, order: u8, mt: usize },
    Free { cpu: usize, which: usize },
    Isolate { block: u32 },
    Undo { block: u32 },
    Drain,
    Offline { block: usize },
    Online { block: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..2_usize, 0..=10_u8, 0..3_usize).prop_map(|(cpu, order, mt)| Op::Alloc { cpu, order, mt }),
        6 => (0..2_usize, any::<usize>()).prop_map(|(cpu, which)| Op::Free { cpu, which }),
        1 => (0..192_u32).prop_map(|block| Op::Isolate { block }),
        1 => (0..192_u32).prop_map(|block| Op::Undo { block }),
        1 => Just(Op::Drain),
        1 => (0..3_usize).prop_map(|block| Op::Offline { block }),
        1 => (0..3_usize).prop_map(|block| Op::Online { block }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is done in whatever order, the books agree and nothing is handed out twice.
    #[test]
    fn the_books_agree_after_any_operations(
        ops in prop::collection::vec(op(), 1..120),
        kind in prop_oneof![Just(ZoneType::Movable), Just(ZoneType::Normal)],
    ) {
        let mut layout = Layout::flat(G, 2, 3);
        layout.zones[0].kind = kind;
        let mm = Mm::new(&layout);
        let mut taken: Vec<(Pfn, u8)> = Vec::new();
        let mut isolated = std::collections::BTreeSet::new();
        for op in ops {
            match op {
                Op::Alloc { cpu, order, mt } => {
                    let migratetype = MigrateType::ALL[mt];
                    let request = AllocRequest { order, migratetype, node: 0, atomic: false };
                    if let Ok(pfn) = mm.alloc(cpu, request) {
                        let new = PfnRange::block(pfn, order);
                        let apart = taken.iter().all(|&(other, order)| {
                            let other = PfnRange::block(other, order);
                            other.end <= new.start || new.end <= other.start
                        });
                        prop_assert!(apart);
                        prop_assert!(!mm.is_isolated(pfn));
                        taken.push((pfn, order));
                    }
                }
                Op::Free { cpu, which } if !taken.is_empty() => {
                    let (pfn, _) = taken.swap_remove(which % taken.len());
                    mm.free(cpu, pfn);
                }
                Op::Free { .. } => {}
                Op::Isolate { block: index } => {
                    if mm.start_isolate_page_range(block(index), IsolateMode::Other).is_ok() {
                        prop_assert!(isolated.insert(index));
                        // A page on a per-CPU list can be allocated still.
                        mm.drain_all(ZoneId(0));
                    }
                }
                Op::Undo { block: index } => {
                    if isolated.remove(&index) {
                        mm.undo_isolate_page_range(block(index), None);
                    }
                }
                Op::Drain => mm.drain_all(ZoneId(0)),
                Op::Offline { block } => {
                    let tries = core::cell::Cell::new(0);
                    let _ = mm.offline_block(block, &Nobody, &|| tries.replace(tries.get() + 1) > 1);
                }
                Op::Online { block } => {
                    let _ = mm.online_block(block);
                }
            }
            mm.validate()?;
        }
    }
}
