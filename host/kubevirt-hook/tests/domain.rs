// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Domains with the balloon: what changes, what stays, what is refused.

use balloon_kubevirt_hook::domain::{Changed, DomainError, attach};
use balloon_kubevirt_hook::options::Options;
use proptest::prelude::*;
use roxmltree::Document;

const DOMAIN: &str = include_str!("data/domain.xml");
const SOCKET: &str = "/var/run/kubevirt-hooks/hook-sidecar-0/balloon/vm.sock";
const DEVICE: &str = "vhost-user-test-device-pci,virtio-id=5,num_vqs=5,vq_size=128,config_size=16,\
                      chardev=vhost-device-balloon,bus=pcie.0,addr=0x10";
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

fn options(annotations: &str) -> Options {
    let vmi = format!("{{\"metadata\": {{\"annotations\": {{{annotations}}}}}}}");
    Options::read(vmi.as_bytes()).expect("valid options")
}

fn attached(xml: &str) -> Result<Changed, DomainError> {
    attach(xml.as_bytes(), SOCKET, &options(""))
}

fn changed(xml: &str) -> String {
    attached(xml).expect("a domain that can have the balloon").xml
}

fn refused(xml: &str) -> String {
    attached(xml).expect_err("it cannot work").to_string()
}

/// The domain with something before the end of an element.
fn with(before: &str, text: &str) -> String {
    assert_eq!(DOMAIN.matches(before).count(), 1, "{before}");
    DOMAIN.replace(before, &format!("{text}{before}"))
}

/// Values of QEMU's arguments.
fn arguments(xml: &str) -> Vec<String> {
    let document = Document::parse(xml).expect("XML");
    let arguments = document.descendants().filter(|node| node.has_tag_name((QEMU, "arg")));
    arguments.filter_map(|node| node.attribute("value").map(str::to_owned)).collect()
}

#[test]
fn domain_of_virt_launcher_gets_the_balloon() {
    let xml = changed(DOMAIN);
    let chardev = format!("socket,id=vhost-device-balloon,path={SOCKET}");
    assert_eq!(arguments(&xml), ["-chardev", &chardev, "-device", DEVICE]);
    // What was there is there, in its order, byte by byte.
    let balloon = "<memballoon model=\"virtio-non-transitional\" freePageReporting=\"on\">\n\t\t\t\
                   <stats period=\"10\"></stats>\n\t\t</memballoon>";
    let expected = DOMAIN.replace(balloon, "<memballoon model=\"none\"/>");
    let (start, end) = expected.split_at(expected.rfind("</domain>").expect("an end"));
    let added = xml.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
    let added = added.unwrap_or_else(|| panic!("{xml}"));
    let backing =
        "<memoryBacking><source type=\"memfd\"/><access mode=\"shared\"/></memoryBacking>";
    assert!(added.starts_with(backing), "{added}");
}

#[test]
fn attaching_twice_changes_nothing_more() {
    let once = changed(DOMAIN);
    assert_eq!(changed(&once), once);
    let own = options("\"vhost-device-balloon/device\": \"vhost-user-balloon\"");
    let other = attach(once.as_bytes(), SOCKET, &own).expect_err("another device");
    assert!(matches!(other, DomainError::OtherBalloon(_)), "{other}");
}

#[test]
fn own_device_reconnects() {
    let own = options("\"vhost-device-balloon/device\": \"vhost-user-balloon\"");
    let xml = attach(DOMAIN.as_bytes(), SOCKET, &own).expect("it works").xml;
    let chardev = format!("socket,id=vhost-device-balloon,path={SOCKET},reconnect-ms=100");
    let device = "vhost-user-balloon-pci,chardev=vhost-device-balloon,bus=pcie.0,addr=0x10";
    assert_eq!(arguments(&xml), ["-chardev", &*chardev, "-device", device]);
}

#[test]
fn arguments_and_prefix_of_others_stay() {
    let other =
        "<q:commandline><q:env name=\"A\" value=\"b\"/><q:arg value=\"-S\"/></q:commandline>";
    let domain = with("\n</domain>", other).replace("xmlns:qemu=", "xmlns:q=");
    let xml = changed(&domain);
    assert!(xml.contains(other.trim_end_matches("</q:commandline>")), "{xml}");
    assert_eq!(arguments(&xml)[..2], ["-S", "-chardev"]);
    let bare = DOMAIN.replace(&format!(" xmlns:qemu=\"{QEMU}\""), "");
    assert_eq!(arguments(&changed(&bare)), arguments(&changed(DOMAIN)));
    let taken = DOMAIN.replace(QEMU, "urn:else");
    assert!(changed(&taken).contains("xmlns:qemu1="));
    let hides = "<qemu:commandline xmlns:q=\"http://libvirt.org/schemas/domain/qemu/1.0\"/>";
    let hides =
        with("\n</domain>", &hides.replace("qemu:", "q:").replace("/>", " xmlns:qemu=\"urn:a\"/>"));
    assert!(refused(&hides).contains("declares the prefix"), "{}", refused(&hides));
}

#[test]
fn a_slot_that_is_taken_is_not_used() {
    let address = "<controller type='pci' model='pcie-root-port'><address type='pci' domain='0x0000' bus='0x00' \
                   slot='0x10' function='0x0'/></controller>";
    assert!(arguments(&changed(&with("\t</devices>", address)))[3].ends_with("addr=0x11"));
    let elsewhere = address.replace("bus='0x00'", "bus='0x01'");
    assert!(arguments(&changed(&with("\t</devices>", &elsewhere)))[3].ends_with("addr=0x10"));
    let added = "<qemu:commandline><qemu:arg value='pci-testdev,addr=0x10.0'/></qemu:commandline>";
    assert!(arguments(&changed(&with("\n</domain>", added)))[4].ends_with("addr=0x11"));
    let all = (0x10..0x1f).map(|slot| address.replace("0x10", &format!("{slot:#x}")));
    assert!(refused(&with("\t</devices>", &all.collect::<String>())).contains("no free slot"));
}

#[test]
fn memory_backing_of_others_is_made_shared() {
    let backing =
        |inner: &str| with("\n</domain>", &format!("<memoryBacking>{inner}</memoryBacking>"));
    let parts = ["<source type=\"memfd\"/>", "<access mode=\"shared\"/>"];
    for inner in [
        "",
        "<source type='anonymous'/>",
        "<source type=\"memfd\"/>",
        "<access mode='private'/>",
        "<nosharepages/>",
    ] {
        let xml = changed(&backing(inner));
        for part in parts {
            assert_eq!(xml.matches(part).count(), 1, "{inner}: {xml}");
        }
        assert!(!inner.contains("nosharepages") || xml.contains(inner), "{xml}");
    }
    let empty = with("\n</domain>", "<memoryBacking/>");
    assert!(
        changed(&empty).contains(&format!("<memoryBacking>{}</memoryBacking>", parts.concat()))
    );
}

#[test]
fn memory_that_cannot_be_returned_is_refused() {
    let backing =
        |inner: &str| with("\n</domain>", &format!("<memoryBacking>{inner}</memoryBacking>"));
    let said = refused(&backing("<hugepages/>"));
    assert!(said.contains("vhost-device-balloon/hugepages=\"true\""), "{said}");
    let huge = options("\"vhost-device-balloon/hugepages\": \"true\"");
    let accepted =
        attach(backing("<hugepages/>").as_bytes(), SOCKET, &huge).expect("it was asked for");
    assert!(accepted.xml.contains("<hugepages/><source type=\"memfd\"/>"), "{}", accepted.xml);
    assert!(refused(&backing("<source type='file'/>")).contains("use 'memfd'"));
    assert!(refused(&backing("<locked/>")).contains("remove it"));
    assert!(refused(&with("\n</domain>", "<launchSecurity type='sev'/>")).contains("encrypted"));
    let cell = "<numa><cell id='0' cpus='0' memory='512' memAccess='private'/></numa>";
    assert!(refused(&with("\t</cpu>", cell)).contains("use 'shared'"));
    for size in ["0", "", "much"] {
        let said = refused(&DOMAIN.replace(">536870912<", &format!(">{size}<")));
        assert!(said.contains("<memory> is"), "{said}");
    }
    let none = DOMAIN.replace("<memory unit=\"b\">536870912</memory>", "");
    assert!(refused(&none).contains("expected one <memory>"));
}

#[test]
fn passed_through_devices_are_refused_or_paused() {
    for device in [
        "<hostdev mode='subsystem' type='pci'/>",
        "<hostdev mode='subsystem' type='mdev'/>",
        "<interface type='hostdev'/>",
        "<interface type='vdpa'/>",
    ] {
        let domain = with("\t</devices>", device);
        let said = refused(&domain);
        assert!(said.contains("passthrough=\"paused\""), "{said}");
        let paused = options("\"vhost-device-balloon/passthrough\": \"paused\"");
        assert!(attach(domain.as_bytes(), SOCKET, &paused).expect("asked for").has_passthrough);
    }
    let usb = with("\t</devices>", "<hostdev mode='subsystem' type='usb'/>");
    assert!(!attached(&usb).expect("USB reaches no memory").has_passthrough);
}

#[test]
fn other_balloons_are_refused() {
    for value in [
        "virtio-balloon-pci,id=b",
        "vhost-user-device-pci,chardev=c,virtio-id=5",
        "vhost-user-balloon-pci,chardev=c",
        "socket,id=vhost-device-balloon,path=/elsewhere",
        "{&quot;driver&quot;: &quot;virtio-balloon-pci&quot;}",
    ] {
        let line = format!("<qemu:commandline><qemu:arg value=\"{value}\"/></qemu:commandline>");
        let said = refused(&with("\n</domain>", &line));
        assert!(said.contains("already has a balloon"), "{said}");
    }
    let fs = "<qemu:commandline><qemu:arg value='vhost-user-fs-pci,chardev=c'/></qemu:commandline>";
    changed(&with("\n</domain>", fs));
}

#[test]
fn what_is_no_domain_of_qemu_is_refused() {
    assert!(refused("").contains("cannot read the domain XML"));
    assert!(refused("<domain/>").contains("the domain's type"));
    assert!(refused("<domain xmlns='urn:a'/>").contains("<domain>, got <domain>"));
    assert!(refused("<network/>").contains("got <network>"));
    assert!(refused(&DOMAIN.replace("\"qemu\"", "\"xen\"")).contains("kvm or qemu"));
    for machine in ["pc", "pc-i440fx-9.0", "s390-ccw-virtio", "virtual"] {
        let said = refused(&DOMAIN.replace("\"q35\"", &format!("\"{machine}\"")));
        assert!(said.contains("q35 or virt"), "{said}");
    }
    for machine in ["pc-q35-rhel9.6.0", "virt", "virt-10.1"] {
        changed(&DOMAIN.replace("\"q35\"", &format!("\"{machine}\"")));
    }
    let latin = attach(b"<domain>\xe4</domain>", SOCKET, &options("")).expect_err("no UTF-8");
    assert!(matches!(latin, DomainError::NotText));
    let bomb = format!("<!DOCTYPE domain [<!ENTITY a 'aaaa'>]>{DOMAIN}");
    assert!(refused(&bomb).contains("DTD"), "{}", refused(&bomb));
    let two = with("\t</devices>", "<memballoon model='none'/>");
    assert!(refused(&two).contains("expected one <memballoon> in the domain, got 2"));
}

#[test]
fn deep_and_wide_domains_are_refused() {
    let deep = format!("<domain type='kvm'>{}", "<a>".repeat(150_000));
    assert!(refused(&deep).contains("cannot read the domain XML"));
    let wide = with("\n</domain>", &"<a/>".repeat(250_000));
    assert!(refused(&wide).contains("cannot read the domain XML"));
}

#[test]
fn sockets_that_qemu_would_misread_are_refused() {
    let long = format!("/{}", "a".repeat(107));
    for socket in ["", "relative", "/a,b=c", "/a b", &long] {
        let error = attach(DOMAIN.as_bytes(), socket, &options("")).expect_err("no path");
        assert!(matches!(error, DomainError::Path(_)), "{error}");
    }
}

/// Pieces of a domain: what the code looks at, and what breaks XML.
fn piece() -> impl Strategy<Value = String> {
    const KNOWN: [&str; 33] = [
        "<domain type='kvm'>",
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
        "<memory>1</memory>",
        "<memory/>",
        "<os><type machine='q35'>hvm</type></os>",
        "<os>",
        "</os>",
        "<devices/>",
        "<devices>",
        "</devices>",
        "<memballoon/>",
        "<memballoon model='none'></memballoon>",
        "<memoryBacking/>",
        "<memoryBacking>",
        "</memoryBacking>",
        "<source type='anonymous'/>",
        "<access/>",
        "<qemu:commandline/>",
        "<qemu:commandline>",
        "</qemu:commandline>",
        "<qemu:arg value='-S'/>",
        "<qemu:arg/>",
        "<!-- <memory> -->",
        "<![CDATA[</domain>]]>",
        "&amp;",
        "&x;",
        "<?xml version='1.0'?>",
        "</domain>",
        "\u{feff}",
        " ",
        "<a b='\u{e4}>'/>",
        "<hostdev type='pci'/>",
        "<address type='pci' bus='0' slot='16'/>",
    ];
    prop_oneof![8 => proptest::sample::select(&KNOWN[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    /// Any text is a clear error or a domain that has the balloon; nothing panics.
    #[test]
    fn any_text_is_refused_or_attached(pieces in prop::collection::vec(piece(), 0..24)) {
        check(&pieces.concat())?;
    }

    /// Domains with anything in their middle.
    #[test]
    fn any_domain_is_refused_or_attached(pieces in prop::collection::vec(piece(), 0..8), at in 0..2_usize) {
        let before = ["\t</devices>", "\n</domain>"][at];
        check(&with(before, &pieces.concat()))?;
    }

    /// One byte of a domain is another, or is missing.
    #[test]
    fn damaged_domains_do_not_panic(at in 0..DOMAIN.len(), byte in any::<Option<u8>>()) {
        let mut bytes = DOMAIN.as_bytes().to_vec();
        bytes.splice(at..=at, byte);
        let _ = attach(&bytes, SOCKET, &options(""));
    }

    #[test]
    fn any_bytes_are_no_vmi_or_options(bytes in prop::collection::vec(any::<u8>(), 0..64), text in any::<String>()) {
        let _ = Options::read(&bytes);
        let _ = Options::read(text.as_bytes());
    }

    #[test]
    fn any_annotation_is_an_option_or_refused(name in "[a-z-]{0,20}", value in any::<String>()) {
        let name = format!("vhost-device-balloon/{name}");
        let annotations = serde_json::json!({ name: value });
        let vmi = serde_json::json!({ "metadata": { "annotations": annotations } }).to_string();
        if let Err(error) = Options::read(vmi.as_bytes()) {
            prop_assert!(error.to_string().contains("expected"), "{}", error);
        }
    }
}

fn check(xml: &str) -> Result<(), TestCaseError> {
    match attached(xml) {
        Err(error) => prop_assert!(!error.to_string().is_empty()),
        Ok(Changed { xml, .. }) => {
            prop_assert_eq!(
                arguments(&xml)
                    .iter()
                    .filter(|value| value.contains("vhost-device-balloon"))
                    .count(),
                2
            );
            prop_assert_eq!(
                attached(&xml).map_err(|error| error.to_string()).map(|changed| changed.xml),
                Ok(xml)
            );
        }
    }
    Ok(())
}
