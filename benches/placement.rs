// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench placement`: an allocation and free of a page in the model, without a constraint and with
//! each scheme that says where it may go.
//!
//! One thread, and nothing changes meanwhile: the first walk serves each. `cargo xtask lab bench placement`
//! has several threads, updates and memory. The names are regular expressions of criterion: `cargo bench
//! --bench placement -- check-at-retry`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, Layout, Mm, NodeMask, ZoneLayout, ZoneType,
};
use guest_driver::placement::{
    Ask, CpusetId, Placement, Policy, Scheme, Setup, TaskId, TaskSetup, Vma,
};

/// Each in a word of its own of a mask.
const NODES: [u8; 2] = [0, 64];
/// Of each node: 256 MiB.
const SECTIONS: usize = 2;

fn guest() -> Arc<Mm> {
    let zone = |(at, node): (usize, u8)| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(at * SECTIONS..(at + 1) * SECTIONS).collect(),
    };
    let zones = NODES.into_iter().enumerate().map(zone).collect();
    let layout = Layout::flat(Geometry::LINUX, 1, NODES.len() * SECTIONS);
    Arc::new(Mm::new(&Layout { zones, ..layout }))
}

fn fast_walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fast-walk");
    let (mm, request) = (guest(), AllocRequest::movable(0));
    group.bench_function("anywhere", |bencher| {
        bencher.iter(|| {
            if let Ok(page) = black_box(mm.alloc(0, request)) {
                mm.free(0, page);
            }
        });
    });
    let nodes: NodeMask = NODES.into_iter().collect();
    for (policy, vma) in [("none", Policy::DEFAULT), ("bind", Policy::bind(nodes))] {
        for &scheme in Scheme::ALL {
            let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![vma] };
            let setup = Setup { cpusets: vec![nodes], tasks: vec![task], ..Setup::default() };
            let placement = match Placement::new(guest(), scheme, &setup) {
                Ok(placement) => placement,
                Err(error) => panic!("{scheme}: {error}"),
            };
            let (task, vma) = (TaskId(0), Some(Vma(0)));
            let ask = Ask { task, vma, cpu: 0, request, most_tries: u32::MAX };
            group.bench_function(BenchmarkId::new(scheme.name(), policy), |bencher| {
                bencher.iter(|| {
                    if let Ok(page) = black_box(placement.ask(black_box(&ask))).page {
                        placement.mm().free(0, page);
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50);
    targets = fast_walk
}
criterion_main!(benches);
