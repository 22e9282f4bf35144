// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl doctor` names the cause in each wrong set-up, and none in a right one.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_driver::virtio::balloon::feature;
use serde_json::Value;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

use crate::controlled::{Controlled, MIB, SOON, given_back, start};

/// The names of what is wrong, and the exit status that says so.
fn wrong(one: &Controlled) -> Vec<String> {
    let (output, errors) = one.ctl(&["--json", "doctor"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found.as_array().unwrap().iter().filter(|finding| finding["wrong"] == true);
    let names: Vec<String> =
        found.map(|finding| finding["cause"].as_str().unwrap().to_owned()).collect();
    assert_eq!(output.status.code(), Some(i32::from(!names.is_empty())), "{errors}");
    names
}

fn attach(one: &Controlled, options: AttachOptions) -> Attachment {
    let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
    Attachment::connect(&one.daemon.socket(), &ram, options).unwrap()
}

fn soon_wrong(one: &Controlled, expected: &[&str]) {
    wait_until(SOON, Duration::from_millis(5), || match wrong(one) {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?}, expected {expected:?}")),
    })
    .unwrap();
}

#[test]
fn doctor_healthy_daemon_finds_nothing() {
    let one = start(&[]);
    let mut guest = one.attach();
    assert!(given_back(&mut guest, 4 * MIB));
    assert_eq!(wrong(&one), [""; 0]);
}

#[test]
fn doctor_without_driver_says_how_far_it_came() {
    let one = start(&[]);
    assert_eq!(wrong(&one), ["no_vmm"]);
    assert!(one.ctl(&["doctor"]).0.stdout.starts_with(b"wrong   no_vmm: no VMM is connected\n"));
    // GET_FEATURES, and nothing after it.
    let mut vmm = UnixStream::connect(one.daemon.socket()).unwrap();
    vmm.write_all(&message(1, &[])).unwrap();
    soon_wrong(&one, &["no_driver"]);
    let mut second = UnixStream::connect(one.daemon.socket()).unwrap();
    second.write_all(&message(1, &[])).unwrap();
    soon_wrong(&one, &["second_vmm", "no_driver"]);
    drop((vmm, second));
    soon_wrong(&one, &["no_vmm"]);
    let mut guest = one.attach();
    guest.stop().unwrap();
    soon_wrong(&one, &["driver_stopped"]);
}

/// A message of a frontend, without descriptors.
fn message(request: u32, payload: &[u64]) -> Vec<u8> {
    let size = u32::try_from(payload.len() * 8).unwrap();
    let header = [request, 1, size].map(u32::to_ne_bytes).concat();
    let payload = payload.iter().flat_map(|word| word.to_ne_bytes());
    header.into_iter().chain(payload).collect()
}

#[test]
fn doctor_wrong_set_up_is_named_until_it_is_right() {
    let one = start(&[]);
    // SET_MEM_TABLE of one region, as QEMU sends memory that is not shared: without its file.
    let mut vmm = UnixStream::connect(one.daemon.socket()).unwrap();
    vmm.write_all(&message(5, &[1, 0, 64 * MIB, 0, 0])).unwrap();
    soon_wrong(&one, &["memory_not_shared", "no_driver"]);
    drop(vmm);
    soon_wrong(&one, &["memory_not_shared", "no_vmm"]);
    // SET_PROTOCOL_FEATURES without CONFIG.
    let mut vmm = UnixStream::connect(one.daemon.socket()).unwrap();
    vmm.write_all(&message(16, &[1 << 3])).unwrap();
    soon_wrong(&one, &["no_config_size", "no_vmm"]);
    let said = one.status()["refused"]["text"].as_str().unwrap().to_owned();
    assert!(said.contains("add config_size=16"), "{said}");
    let mut guest = one.attach();
    assert!(given_back(&mut guest, 4 * MIB));
    assert_eq!(wrong(&one), [""; 0]);
}

#[test]
fn doctor_driver_without_reports_says_why() {
    let all = AttachOptions::KNOWN_FEATURES;
    for (features, queues, cause) in [
        (all & !0xff, None, "masked_features"),
        (all & !feature::REPORTING, None, "no_reporting_in_guest"),
        (all, Some(vec![0, 1]), "queue_missing"),
    ] {
        let one = start(&[]);
        let _guest = attach(&one, AttachOptions { features, queues, ..AttachOptions::default() });
        soon_wrong(&one, &[cause]);
    }
    let one = start(&["--no-reporting"]);
    let _guest = one.attach();
    soon_wrong(&one, &["reporting_off"]);
}

#[test]
fn doctor_operators_settings_are_named() {
    let one = start(&["--target", "1G"]);
    let _guest = one.attach();
    one.shown(&["pause"]);
    one.shown(&["pin", "0x400000", "2M"]);
    soon_wrong(&one, &["paused", "pinned", "target_refused"]);
    one.shown(&["resume"]);
    one.shown(&["unpin", "0x400000", "2M"]);
    one.shown(&["target", "0"]);
    assert_eq!(wrong(&one), [""; 0]);
}

#[test]
fn doctor_poisoning_guest_is_named() {
    let one = start(&[]);
    let mut guest = attach(&one, AttachOptions { poison: Some(0xaa), ..AttachOptions::default() });
    assert!(!given_back(&mut guest, 4 * MIB));
    assert_eq!(wrong(&one), ["guest_poisons"]);
    one.shown(&["reset-counters"]);
    assert_eq!(wrong(&one), [""; 0]);
}
