// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes wrong on the backend's side, and what becomes of the guest.

use std::path::Path;
use std::time::Duration;

use balloon_lab::faults::device::FaultyDevice;
use balloon_lab::faults::outcome::{Judgement, Met};
use balloon_lab::faults::plan::{Fault, FaultKind, FaultPlan, Injector};
use balloon_lab::faults::{linux, model};
use guest_driver::page_alloc::{Pfn, PfnRange};
use guest_driver::reporting::ReportSink;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, Holdings, ModelConfig, ModelVm};
use vmm_integration::vmm::qemu;

const MIB: u64 = 1 << 20;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
}

fn meet(kinds: impl Iterator<Item = FaultKind>) {
    let mut failed = Vec::new();
    for kind in kinds {
        // A discard has to take long enough to be found under way.
        let found = [FaultKind::MemoryTable, FaultKind::StopQueue, FaultKind::FrontendHangUp];
        let ms = found.contains(&kind).then_some(2000);
        let fault = Fault { after: 2, ms, ..Fault::new(kind) };
        let judged = match model::meet(&fault, binary()) {
            Ok(met) => {
                println!("{kind}: {:?}: {met}", met.judge(kind));
                met.judge(kind)
            }
            Err(error) => {
                println!("{kind}: {error:#}");
                Judgement::Failed
            }
        };
        if judged == Judgement::Failed {
            failed.push(fault.to_string());
        }
    }
    assert!(failed.is_empty(), "cargo xtask lab race faults --fault {}", failed.join(" --fault "));
}

#[test]
fn model_with_a_faulty_device_behaves_as_documented() {
    meet(FaultKind::ALL.into_iter().filter(|kind| kind.injector() == Injector::FaultyDevice));
}

/// The one promise that reporting rests on. Without it the guest's memory does not survive, which
/// shows that the others would not have gone unnoticed.
#[test]
fn acknowledgement_before_discard_loses_used_memory() {
    // Long enough for the guest to use its memory before that is discarded.
    let fault = Fault { times: 0, ms: Some(3000), ..Fault::new(FaultKind::EarlyAck) };
    let kind = fault.kind;
    let device = FaultyDevice::start(FaultPlan::new(vec![fault]).unwrap()).unwrap();
    let config = ModelConfig::new(GuestMemory::flat(128 * MIB, 1));
    let mut vm = ModelVm::start(&device.socket(), config).unwrap();
    let holdings = Holdings::new(vm.mm(), vm.ram());
    let blocks: Vec<_> = (0..32).map(|n| PfnRange::block(Pfn(n << 9), 9)).collect();
    vm.take_reporting().unwrap().report(&blocks, None).unwrap();
    let before = device.served();
    // More than was not reported.
    holdings.alloc(0, 100 * MIB, 9, 1).unwrap();
    wait_until(Duration::from_secs(20), Duration::from_millis(1), || {
        let now = device.served();
        if now.discarded_bytes > before.discarded_bytes { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .unwrap();
    let lost_bytes = holdings.verify(0).unwrap().lost_bytes;
    assert!(lost_bytes > 0, "{before:?}");
    let met = Met { faults: before.faults, lost_bytes, ..Met::default() };
    assert_eq!(met.judge(kind), Judgement::AsDocumented);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn the_daemon_survives_what_happens_to_it() {
    // strace comes with the guest.
    qemu::available().unwrap();
    meet(FaultKind::ALL.into_iter().filter(|kind| kind.injector() == Injector::Daemon));
}

/// Linux waits without a timeout; nothing else in the guest does.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_without_acknowledgement_waits_forever() {
    let toolbox = qemu::available().unwrap();
    let fault = Fault::new(FaultKind::DropAck);
    let met = linux::meet(&fault, &toolbox, binary()).unwrap();
    println!("{met}");
    assert_eq!(met.judge(fault.kind), Judgement::AsDocumented, "{met}");
    assert!(met.waits && met.lost_bytes == 0, "{met}");
    assert!(met.stack.iter().any(|at| at.contains("page_reporting_process")), "{met}");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_survives_an_acknowledgement_that_comes_late() {
    let toolbox = qemu::available().unwrap();
    let fault = Fault { ms: Some(1000), ..Fault::new(FaultKind::DelayAck) };
    let met = linux::meet(&fault, &toolbox, binary()).unwrap();
    assert_eq!(met.judge(fault.kind), Judgement::Survived, "{met}");
}
