//! What goes wrong on the backend's side, and what becomes of the guest.

use std::path::Path;

use vmm_integration::lab::faults::outcome::Judgement;
use vmm_integration::lab::faults::plan::{Fault, FaultKind, Injector};
use vmm_integration::lab::faults::{inject, linux, model};
use vmm_integration::qemu;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
}

fn meet(kinds: impl Iterator<Item = FaultKind>) {
    let mut failed = Vec::new();
    for kind in kinds {
        let fault = Fault { after: 2, ..Fault::new(kind) };
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
fn the_model_survives_a_faulty_device_or_fails_as_documented() {
    meet(FaultKind::ALL.into_iter().filter(|kind| kind.injector() == Injector::FaultyDevice));
}

/// The one promise that reporting rests on. Without it the guest's memory does not survive, which
/// shows that the others would not have gone unnoticed.
#[test]
fn an_acknowledgement_ahead_of_the_discard_costs_memory_in_use() {
    let fault = Fault { times: 0, ms: Some(20), ..Fault::new(FaultKind::EarlyAck) };
    let met = model::meet(&fault, binary()).unwrap();
    println!("{met}");
    assert!(met.lost_bytes > 0, "{met}");
    assert_eq!(met.judge(fault.kind), Judgement::AsDocumented);
}

#[test]
fn the_daemon_survives_what_happens_to_it() {
    if inject::strace().is_err() && qemu::toolbox_or_skip("the daemon's faults").is_none() {
        return;
    }
    meet(FaultKind::ALL.into_iter().filter(|kind| kind.injector() == Injector::Daemon));
}

/// Linux waits without a timeout; nothing else in the guest does.
#[test]
fn linux_waits_for_ever_for_an_acknowledgement_that_never_comes() {
    let test = "linux_waits_for_ever_for_an_acknowledgement_that_never_comes";
    let Some(toolbox) = qemu::toolbox_or_skip(test) else { return };
    let fault = Fault::new(FaultKind::DropAck);
    let met = linux::meet(&fault, &toolbox, binary()).unwrap();
    println!("{met}");
    assert_eq!(met.judge(fault.kind), Judgement::AsDocumented, "{met}");
    assert!(met.waits && met.lost_bytes == 0, "{met}");
    assert!(met.stack.iter().any(|at| at.contains("page_reporting_process")), "{met}");
}

#[test]
fn linux_survives_an_acknowledgement_that_comes_late() {
    let test = "linux_survives_an_acknowledgement_that_comes_late";
    let Some(toolbox) = qemu::toolbox_or_skip(test) else { return };
    let fault = Fault { ms: Some(1000), ..Fault::new(FaultKind::DelayAck) };
    let met = linux::meet(&fault, &toolbox, binary()).unwrap();
    assert_eq!(met.judge(fault.kind), Judgement::Survived, "{met}");
}
