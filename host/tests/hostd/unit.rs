// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The service of hostd under systemd, on a Debian of its own.

use std::fs;
use std::path::Path;

use vmm_integration::debian::DebianMachine;
use vmm_integration::measure::host::wait_until;

use crate::host::{BINARY, PATIENCE, daemon_binary};

const UNIT: &str = "vhost-device-balloon-hostd.service";
/// A policy that needs samples, so that each kind of request is made.
const POLICY: &str = "[host]\nreserve = '1000T'\nperiod = '1s'\n";

#[test]
#[ignore = "needs a Debian machine: cargo xtask test"]
fn service_is_confined_and_steers() {
    let machine = DebianMachine::boot().expect("a machine");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let copy = |from: &Path, to: &str| {
        fs::copy(from, machine.path(to)).expect("a file of the machine");
    };
    copy(Path::new(BINARY), "/usr/bin/vhost-device-balloon-host");
    copy(&daemon_binary(), "/usr/bin/vhost-device-balloon");
    copy(&root.join("packaging/systemd").join(UNIT), &format!("/usr/lib/systemd/system/{UNIT}"));
    let script = |text: &str| {
        let said = machine.script(text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
        println!("{said}");
        said
    };
    script(&format!(
        "mkdir -p /run/vhost-device-balloon /etc/vhost-device-balloon
         printf \"{}\" > /etc/vhost-device-balloon/policy.toml
         echo 'HOSTD_OPTIONS=\"--policy /etc/vhost-device-balloon/policy.toml\"' > /etc/vhost-device-balloon/hostd.options
         systemctl daemon-reload
         systemd-run --unit=vm1 vhost-device-balloon --name vm1 --statistics --socket-path /run/vhost-device-balloon/vm1.sock --control-socket /run/vhost-device-balloon/vm1.ctl
         systemctl start {UNIT}",
        POLICY.replace('\n', "\\n")
    ));
    let status = "vhost-device-balloon-host status --json";
    wait_until(PATIENCE, std::time::Duration::from_millis(100), || {
        let view = machine.script(status).map_err(|error| error.to_string())?;
        let view: serde_json::Value =
            serde_json::from_str(&view).map_err(|error| error.to_string())?;
        match view["guests"][0]["why"] == "no_guest" && view["guests"][0]["name"] == "vm1" {
            true => Ok(()),
            false => Err(format!("{view:#}")),
        }
    })
    .expect("hostd asks the daemon");
    let journal = script(&format!("journalctl --unit {UNIT} --no-pager --output cat"));
    assert!(!journal.contains("cannot"), "{journal}");
    assert!(journal.contains("engaged"), "{journal}");
    script(&format!("systemd-analyze security --no-pager {UNIT} | tail -1"));
    script(&format!(
        "systemctl stop {UNIT}; test \"$(systemctl show -P Result {UNIT})\" = success"
    ));
    script("! test -e /run/vhost-device-balloon/hostd.sock");
}
