// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A libvirt domain with the balloon in it, as `docs/user/operate.md` has it.

use std::collections::BTreeSet;

use roxmltree::{Document, Node, ParsingOptions};

use crate::options::{Device, Options, PREFIX};
use crate::splice::{Splices, escaped};

/// The namespace of arguments that libvirt passes on to QEMU.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// Name of the character device in QEMU; a domain that has it has this balloon.
const CHARDEV: &str = "vhost-device-balloon";
/// More than any domain has, so that a hostile one costs some megabytes at most.
const MOST_NODES: u32 = 200_000;
/// The longest path of a Unix socket, in bytes.
const LONGEST_PATH: usize = 107;
/// Slots of the root bus that are tried. libvirt gives out the lowest ones by itself, from 1 on.
const SLOTS: std::ops::RangeInclusive<u32> = 0x10..=0x1e;

/// Why a domain does not get the balloon.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The bytes are not text.
    #[error("the domain XML is not UTF-8")]
    NotText,
    /// The text is no XML.
    #[error("cannot read the domain XML: {0}")]
    NotXml(#[source] roxmltree::Error),
    /// The XML is something else.
    #[error("expected a libvirt <domain>, got <{0}>")]
    NotADomain(String),
    /// Something is missing, or more than one.
    #[error("expected one <{name}> in the domain, got {count}")]
    Count {
        /// Path below the domain.
        name: &'static str,
        /// How many there are.
        count: usize,
    },
    /// A hypervisor or a machine that has no such device.
    #[error("{what} is {got:?}, expected {expected}: the balloon needs QEMU and PCI Express")]
    Machine {
        /// Which part of the domain.
        what: &'static str,
        /// What it says.
        got: String,
        /// What would do.
        expected: &'static str,
    },
    /// The VM has no memory.
    #[error("<memory> is {0:?}, expected a size: a VM without memory has none to return")]
    NoMemory(String),
    /// Memory that the daemon cannot reach, or must not touch.
    #[error("{what}: {why}")]
    Memory {
        /// Which part of the domain.
        what: &'static str,
        /// Why that cannot work, and the remedy.
        why: String,
    },
    /// Devices that write to guest memory behind the daemon.
    #[error(
        "the VM has devices passed through ({0}), and these would go on with memory that was discarded; the annotation \
         {PREFIX}passthrough=\"paused\" attaches a balloon that discards nothing until an operator resumes it"
    )]
    Passthrough(String),
    /// Another balloon.
    #[error(
        "the domain's qemu:commandline already has a balloon: {0}; remove it, Linux takes one only"
    )]
    OtherBalloon(String),
    /// All slots are taken.
    #[error("no free slot on bus pcie.0 from 0x10 to 0x1e")]
    NoSlot,
    /// A namespace within the domain has the prefix of another.
    #[error(
        "<qemu:commandline> declares the prefix of the domain's namespace for another; rename it"
    )]
    Hidden,
    /// A path that QEMU or the kernel does not take.
    #[error("socket path {0:?}: expected at most {LONGEST_PATH} characters of A-Z a-z 0-9 . _ / -")]
    Path(String),
}

/// A domain that was read and can have the balloon.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The XML with the balloon. What it does not need to change is as it was, byte by byte.
    pub xml: String,
    /// Whether the VM has devices passed through.
    pub has_passthrough: bool,
}

/// Gives the domain a balloon whose daemon listens at `socket`, a path as QEMU sees it. A domain that has it stays as
/// it is.
///
/// # Errors
/// [`DomainError`] when that cannot work.
pub fn attach(xml: &[u8], socket: &str, options: &Options) -> Result<Changed, DomainError> {
    let xml = std::str::from_utf8(xml).map_err(|_| DomainError::NotText)?;
    check_path(socket)?;
    let parsing = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, parsing).map_err(DomainError::NotXml)?;
    let domain = document.root_element();
    if !is(domain, "domain") {
        return Err(DomainError::NotADomain(domain.tag_name().name().to_owned()));
    }
    check_machine(domain)?;
    check_memory(domain, options)?;
    let passthrough = passed_through(domain);
    if !passthrough.is_empty() && !options.passthrough {
        return Err(DomainError::Passthrough(passthrough.join(", ")));
    }
    let mut splices = Splices::default();
    share_memory(domain, &mut splices, options)?;
    remove_memballoon(domain, &mut splices)?;
    add_device(domain, &mut splices, socket, options.device)?;
    let xml = splices.apply(xml);
    verify(&xml, socket, options.device)?;
    Ok(Changed { xml, has_passthrough: !passthrough.is_empty() })
}

/// What comes out is read like what came in: XML can do more than the edits think of.
fn verify(xml: &str, socket: &str, device: Device) -> Result<(), DomainError> {
    let document = Document::parse(xml).map_err(DomainError::NotXml)?;
    let mut values = document.descendants().filter(|node| node.has_tag_name((QEMU, "arg")));
    let wanted = arguments(socket, device);
    let has = |start: &String| {
        values.any(|node| node.attribute("value").is_some_and(|value| value.starts_with(start)))
    };
    match wanted.iter().all(has) {
        true => Ok(()),
        false => Err(DomainError::Hidden),
    }
}

fn check_path(socket: &str) -> Result<(), DomainError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    match socket.starts_with('/') && socket.len() <= LONGEST_PATH && socket.bytes().all(plain) {
        true => Ok(()),
        false => Err(DomainError::Path(socket.to_owned())),
    }
}

/// Children of this name without a namespace.
fn children<'a>(of: Node<'a, 'a>, name: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    of.children().filter(move |child| is(*child, name))
}

/// Whether it is an element of this name without a namespace.
fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

fn one<'a>(of: Node<'a, 'a>, name: &'static str) -> Result<Node<'a, 'a>, DomainError> {
    at_most_one(of, name)?.ok_or(DomainError::Count { name, count: 0 })
}

fn at_most_one<'a>(
    of: Node<'a, 'a>,
    name: &'static str,
) -> Result<Option<Node<'a, 'a>>, DomainError> {
    let found: Vec<_> = children(of, name).collect();
    match found[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => Err(DomainError::Count { name, count: found.len() }),
    }
}

fn check_machine(domain: Node<'_, '_>) -> Result<(), DomainError> {
    let hypervisor = domain.attribute("type").unwrap_or_default();
    if !["kvm", "qemu"].contains(&hypervisor) {
        let got = hypervisor.to_owned();
        return Err(DomainError::Machine {
            what: "the domain's type",
            got,
            expected: "kvm or qemu",
        });
    }
    let machine = one(one(domain, "os")?, "type")?.attribute("machine").unwrap_or_default();
    let is_known =
        machine.split('-').any(|part| part == "q35") || machine.split('-').next() == Some("virt");
    if !is_known {
        let got = machine.to_owned();
        return Err(DomainError::Machine { what: "the machine", got, expected: "q35 or virt" });
    }
    Ok(())
}

fn check_memory(domain: Node<'_, '_>, options: &Options) -> Result<(), DomainError> {
    let size = one(domain, "memory")?.text().unwrap_or_default().trim().to_owned();
    if size.parse::<u64>().ok().filter(|size| *size > 0).is_none() {
        return Err(DomainError::NoMemory(size));
    }
    let refuse = |what, why: &str| Err(DomainError::Memory { what, why: why.to_owned() });
    if at_most_one(domain, "launchSecurity")?.is_some() {
        return refuse(
            "<launchSecurity>",
            "the guest's memory is encrypted, and the daemon cannot reach it",
        );
    }
    if let Some(backing) = at_most_one(domain, "memoryBacking")? {
        if at_most_one(backing, "hugepages")?.is_some() && !options.hugepages {
            let why = format!(
                "a discarded huge page returns to the host's pool, where any process can take it, and its VM ends with \
                 SIGBUS; the annotation {PREFIX}hugepages=\"true\" accepts that"
            );
            return Err(DomainError::Memory { what: "<hugepages>", why });
        }
        if at_most_one(backing, "locked")?.is_some() {
            return refuse("<locked>", "locked memory must stay; remove it");
        }
    }
    let private = |node: Node<'_, '_>| node.attribute("memAccess") == Some("private");
    if domain.descendants().any(|node| is(node, "cell") && private(node)) {
        return refuse(
            "memAccess='private' of a NUMA cell",
            "the daemon cannot reach it; use 'shared'",
        );
    }
    Ok(())
}

/// Devices that reach guest memory by themselves, by their kinds.
fn passed_through(domain: Node<'_, '_>) -> Vec<String> {
    let devices = children(domain, "devices").flat_map(|devices| devices.children());
    let kind = |device: Node<'_, '_>| {
        let kind = device.attribute("type").unwrap_or_default();
        let passed = match device.tag_name().name() {
            "hostdev" => ["pci", "mdev"].contains(&kind),
            "interface" => ["hostdev", "vdpa"].contains(&kind),
            _ => false,
        };
        passed.then(|| format!("{} {kind}", device.tag_name().name()))
    };
    devices.filter_map(kind).collect()
}

/// Guest memory in a memfd that is mapped shared.
fn share_memory(
    domain: Node<'_, '_>,
    splices: &mut Splices,
    options: &Options,
) -> Result<(), DomainError> {
    const SOURCE: &str = "<source type=\"memfd\"/>";
    const ACCESS: &str = "<access mode=\"shared\"/>";
    let Some(backing) = at_most_one(domain, "memoryBacking")? else {
        splices.append(domain, &format!("<memoryBacking>{SOURCE}{ACCESS}</memoryBacking>"));
        return Ok(());
    };
    match at_most_one(backing, "source")? {
        None => splices.append(backing, SOURCE),
        Some(source) => match source.attribute("type") {
            Some("memfd") => {}
            // libvirt has the pages of `file` in a folder of hugetlbfs as well.
            Some("file") if options.hugepages && at_most_one(backing, "hugepages")?.is_some() => {}
            Some("anonymous") | None => splices.replace(source, SOURCE),
            Some(_) => {
                let why = "the daemon does not know that file system; remove it, or use 'memfd'";
                return Err(DomainError::Memory {
                    what: "<source> of <memoryBacking>",
                    why: why.into(),
                });
            }
        },
    }
    match at_most_one(backing, "access")? {
        None => splices.append(backing, ACCESS),
        Some(access) if access.attribute("mode") == Some("shared") => {}
        Some(access) => splices.replace(access, ACCESS),
    }
    Ok(())
}

/// libvirt adds a balloon of its own to a domain that does not say it has none.
fn remove_memballoon(domain: Node<'_, '_>, splices: &mut Splices) -> Result<(), DomainError> {
    const NONE: &str = "<memballoon model=\"none\"/>";
    let devices = one(domain, "devices")?;
    match at_most_one(devices, "memballoon")? {
        None => splices.append(devices, NONE),
        Some(balloon) if balloon.attribute("model") == Some("none") => {}
        Some(balloon) => splices.replace(balloon, NONE),
    }
    Ok(())
}

/// The two arguments of QEMU, without the slot.
fn arguments(socket: &str, device: Device) -> [String; 2] {
    let (reconnect, device) = match device {
        Device::Generic => (
            "",
            "vhost-user-test-device-pci,virtio-id=5,num_vqs=5,vq_size=128,config_size=16,chardev=",
        ),
        Device::VhostUserBalloon => (",reconnect-ms=100", "vhost-user-balloon-pci,chardev="),
    };
    [
        format!("socket,id={CHARDEV},path={socket}{reconnect}"),
        format!("{device}{CHARDEV},bus=pcie.0,addr="),
    ]
}

fn add_device(
    domain: Node<'_, '_>,
    splices: &mut Splices,
    socket: &str,
    device: Device,
) -> Result<(), DomainError> {
    let command_lines: Vec<_> =
        domain.children().filter(|child| child.has_tag_name((QEMU, "commandline"))).collect();
    if command_lines.len() > 1 {
        let count = command_lines.len();
        return Err(DomainError::Count { name: "qemu:commandline", count });
    }
    let wanted = arguments(socket, device);
    let is_argument = |child: &Node<'_, '_>| child.has_tag_name((QEMU, "arg"));
    let values = command_lines.iter().flat_map(|line| line.children()).filter(is_argument);
    let balloons: Vec<&str> =
        values.filter_map(|argument| argument.attribute("value")).filter(is_balloon).collect();
    if let [chardev, device] = balloons[..]
        && chardev == wanted[0]
        && device.starts_with(&wanted[1])
    {
        return Ok(());
    }
    if !balloons.is_empty() {
        return Err(DomainError::OtherBalloon(balloons.join(" ")));
    }
    let slot = free_slot(domain)?;
    let [chardev, device] = wanted;
    let device = format!("{device}0x{slot:x}");
    let prefix = prefix(domain, splices);
    let argument = |value: &str| format!("<{prefix}:arg value=\"{}\"/>", escaped(value));
    let added = ["-chardev", &chardev, "-device", &device].map(argument).concat();
    match command_lines.first() {
        // Its own prefix may be another one; the root's is in scope there as well.
        Some(line) => splices.append(*line, &added),
        None => {
            splices
                .append(domain, &format!("<{prefix}:commandline>{added}</{prefix}:commandline>"));
        }
    }
    Ok(())
}

/// Whether an argument of QEMU makes a balloon, ours or another.
fn is_balloon(value: &&str) -> bool {
    let mut parts = value.split(',');
    let driver = parts.next().unwrap_or_default();
    let id = |part: &str| ["virtio-id=5", "virtio-id=0x5"].contains(&part);
    driver.starts_with("virtio-balloon")
        || driver.starts_with("vhost-user-balloon")
        || (driver.starts_with("vhost-user-") && value.split(',').any(id))
        || parts.any(|part| part.strip_prefix("id=") == Some(CHARDEV))
        || (value.contains("\"driver\"") && value.contains("balloon"))
}

/// A prefix of QEMU's namespace at the root, which is declared there if it is not yet.
fn prefix(domain: Node<'_, '_>, splices: &mut Splices) -> String {
    let mut declared = domain.namespaces().filter(|namespace| namespace.uri() == QEMU);
    if let Some(prefix) = declared.find_map(|namespace| namespace.name()) {
        return prefix.to_owned();
    }
    let taken: BTreeSet<_> = domain.namespaces().filter_map(|namespace| namespace.name()).collect();
    let numbered = (1..).map(|number| format!("qemu{number}"));
    let mut free = ["qemu".to_owned()].into_iter().chain(numbered);
    let prefix = free.find(|prefix| !taken.contains(&**prefix)).unwrap_or_default();
    splices.add_attribute(domain, &format!("xmlns:{prefix}"), QEMU);
    prefix
}

/// The lowest slot of the root bus that no device of the domain has.
fn free_slot(domain: Node<'_, '_>) -> Result<u32, DomainError> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    };
    let slot = |address: Node<'_, '_>| {
        let is_root = |name| address.attribute(name).is_none_or(|text| number(text) == Some(0));
        let is_pci = is(address, "address") && address.attribute("type") == Some("pci");
        (is_pci && is_root("domain") && is_root("bus"))
            .then(|| number(address.attribute("slot")?))?
    };
    // Others add arguments, too.
    let argument = |node: Node<'_, '_>| {
        let value = node.has_tag_name((QEMU, "arg")).then(|| node.attribute("value"))??;
        let address = value.split(',').find_map(|part| part.strip_prefix("addr="))?;
        number(address.split('.').next()?)
    };
    let taken = domain.descendants().filter_map(|node| slot(node).or_else(|| argument(node)));
    let taken: BTreeSet<u32> = taken.collect();
    SLOTS.into_iter().find(|slot| !taken.contains(slot)).ok_or(DomainError::NoSlot)
}
