// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a package holds.

use std::collections::BTreeMap;

use vhost_device_balloon::program;

use super::about::{NAME, PARTS};
use super::contents::{Family, Kind, contents};

/// The files of a package with this program in place of all, by path.
fn files(family: Family) -> BTreeMap<String, (Vec<u8>, Kind)> {
    let programs = PARTS.map(|part| (part, std::env::current_exe().unwrap()));
    let items = contents(&programs, family).unwrap();
    items.into_iter().map(|item| (item.path, (item.bytes, item.kind))).collect()
}

#[test]
fn packages_hold_what_belongs_to_the_daemon() {
    let (debian, red_hat) = (files(Family::Debian), files(Family::RedHat));
    for files in [&debian, &red_hat] {
        for path in [
            "usr/bin/vhost-device-balloon",
            "usr/bin/vhost-device-balloon-host",
            "usr/lib/systemd/system/vhost-device-balloon-hostd.service",
            "usr/share/man/man1/vhost-device-balloon-host-hostd.1.gz",
            "usr/share/bash-completion/completions/vhost-device-balloon-host.bash",
            "usr/share/doc/vhost-device-balloon/vhost-device-balloon-host.cdx.json",
            "usr/lib/systemd/system/vhost-device-balloon@.service",
            "usr/lib/systemd/system/vhost-device-balloon@.socket",
            "usr/lib/sysusers.d/vhost-device-balloon.conf",
            "usr/lib/tmpfiles.d/vhost-device-balloon.conf",
            "usr/share/bash-completion/completions/vhost-device-balloon.bash",
            "usr/share/fish/vendor_completions.d/vhost-device-balloon.fish",
            "usr/share/man/man1/vhost-device-balloon.1.gz",
            "usr/share/man/man1/vhost-device-balloon-ctl-target.1.gz",
            "usr/share/doc/vhost-device-balloon/README.md",
            "usr/share/doc/vhost-device-balloon/openapi.json",
            "usr/share/doc/vhost-device-balloon/vhost-device-balloon.cdx.json",
        ] {
            assert!(files.get(path).is_some_and(|(bytes, _)| !bytes.is_empty()), "{path}");
        }
        let configs: Vec<_> = files
            .iter()
            .filter(|(_, (_, kind))| *kind == Kind::Config)
            .map(|file| file.0)
            .collect();
        assert_eq!(configs, ["etc/apparmor.d/vhost-device-balloon"]);
    }
    for path in [
        "usr/share/zsh/vendor-completions/_vhost-device-balloon",
        "usr/share/doc/vhost-device-balloon/copyright",
        "usr/share/doc/vhost-device-balloon/changelog.Debian.gz",
        "usr/share/doc/vhost-device-balloon/licenses-of-crates.gz",
    ] {
        assert!(debian.contains_key(path), "{path}");
    }
    for path in [
        "usr/share/zsh/site-functions/_vhost-device-balloon",
        "usr/share/licenses/vhost-device-balloon/LICENSE-APACHE",
        "usr/share/licenses/vhost-device-balloon/licenses-of-crates.gz",
    ] {
        assert!(red_hat.contains_key(path), "{path}");
    }
}

/// Checks the descriptor against `VHostUserBackend` of QEMU's vhost-user.json.
#[test]
fn descriptor_names_the_installed_program() {
    let files = files(Family::Debian);
    let (bytes, _) = &files["usr/share/qemu/vhost-user/50-vhost-device-balloon.json"];
    let descriptor: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    assert_eq!(descriptor["type"], "balloon");
    assert_eq!(descriptor["binary"], format!("/usr/bin/{NAME}"));
    assert!(descriptor["description"].is_string());
    let capabilities: serde_json::Value = serde_json::from_str(program::CAPABILITIES).unwrap();
    assert_eq!(capabilities["type"], descriptor["type"]);
}
