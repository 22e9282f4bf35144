// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line of a guest.

use std::path::Path;

use super::version::Version;
use crate::vmm::bare::BareSpec;
use crate::vmm::tsc;

const MIB: u64 = 1 << 20;
/// Sizes of the balloon's queues, all five of them.
const QUEUES: &str = "[64,64,64,64,64]";

/// What boots a guest from `image` whose daemon listens on `socket`.
pub(super) fn boot(version: &Version, spec: &BareSpec, image: &Path, socket: &Path) -> Vec<String> {
    // Without it the guest would have to measure the rate, by a timer that is not there.
    let line = spec.command_line.iter().cloned().chain([tsc::option()]).collect::<Vec<_>>();
    let device =
        format!("socket={},{}=5,queue_sizes={QUEUES}", socket.display(), version.device_type());
    let options = [
        ("--kernel", image.display().to_string()),
        ("--cmdline", line.join(" ")),
        ("--cpus", "boot=1".to_owned()),
        ("--serial", "tty".to_owned()),
        ("--console", "off".to_owned()),
        ("--generic-vhost-user", device),
    ];
    let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    options.chain(memory(spec)).collect()
}

/// The options for its memory: zones where it is in several files.
fn memory(spec: &BareSpec) -> Vec<String> {
    let BareSpec { memory_bytes, growth_bytes, hugetlb_page_bytes, files, .. } = *spec;
    let mut common = "shared=on".to_owned();
    if let Some(bytes) = hugetlb_page_bytes {
        common += &format!(",hugepages=on,hugepage_size={}M", bytes / MIB);
    }
    let size = memory_bytes / files / MIB;
    if files > 1 {
        let zones = (0..files).map(|zone| format!("id=zone{zone},size={size}M,{common}"));
        let zones =
            ["--memory", "size=0", "--memory-zone"].map(str::to_owned).into_iter().chain(zones);
        return zones.collect();
    }
    if growth_bytes > 0 {
        common += &format!(",hotplug_size={}M", growth_bytes / MIB);
    }
    vec!["--memory".to_owned(), format!("size={size}M,{common}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> BareSpec {
        BareSpec {
            memory_bytes: 512 * MIB,
            growth_bytes: 0,
            hugetlb_page_bytes: None,
            files: 1,
            socket: "/run/other.sock".into(),
            command_line: vec!["stride=512".to_owned(), "do=verify".to_owned()],
        }
    }

    #[test]
    fn arguments_attach_the_device_with_five_queues() {
        let version = Version::parse("cloud-hypervisor v53.0").unwrap();
        let arguments = boot(&version, &spec(), Path::new("/image"), Path::new("/run/b.sock"));
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name).unwrap();
            arguments[at + 1].clone()
        };
        assert_eq!(
            value("--generic-vhost-user"),
            "socket=/run/b.sock,device_type=5,queue_sizes=[64,64,64,64,64]"
        );
        assert_eq!(value("--memory"), "size=512M,shared=on");
        assert_eq!(value("--kernel"), "/image");
        assert!(value("--cmdline").starts_with("stride=512 do=verify tsc-khz="));
    }

    #[test]
    fn memory_grows_or_is_in_zones_if_asked() {
        let grows = BareSpec { growth_bytes: 128 * MIB, ..spec() };
        assert_eq!(memory(&grows), ["--memory", "size=512M,shared=on,hotplug_size=128M"]);
        let huge = BareSpec { hugetlb_page_bytes: Some(2 * MIB), ..spec() };
        assert_eq!(memory(&huge)[1], "size=512M,shared=on,hugepages=on,hugepage_size=2M");
        let zones = ["id=zone0,size=256M,shared=on", "id=zone1,size=256M,shared=on"];
        let zones = ["--memory", "size=0", "--memory-zone", zones[0], zones[1]];
        assert_eq!(memory(&BareSpec { files: 2, ..spec() }), zones);
    }
}
