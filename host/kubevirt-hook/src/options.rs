// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the annotations of a VirtualMachineInstance ask for. Their names begin with [`PREFIX`].

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;

/// Begins the name of every annotation that is for this hook.
pub const PREFIX: &str = "vhost-device-balloon/";

/// The longest name of a VM that the daemon takes, in bytes.
const LONGEST_NAME: usize = 255;

/// Why a VM's options are not taken.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The VM is no JSON of the shape that KubeVirt sends.
    #[error("cannot read the VirtualMachineInstance: {0} (expected KubeVirt's JSON)")]
    NotAVmi(#[source] serde_json::Error),
    /// An annotation has a name that is none of ours.
    #[error("unknown annotation {PREFIX}{0}; expected one of: {names}", names = Annotation::names())]
    Unknown(String),
    /// An annotation has a value that it cannot have.
    #[error("annotation {PREFIX}{name}: got {got:?}, expected {expected}")]
    Value {
        /// The name, without [`PREFIX`].
        name: &'static str,
        /// What it says.
        got: String,
        /// What it could say.
        expected: &'static str,
    },
}

/// The device of QEMU that attaches the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// QEMU's generic vhost-user device, in 10.2 and later.
    #[default]
    Generic,
    /// This project's device, in a QEMU that was built with it.
    VhostUserBalloon,
}

/// What a VM asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether the VM gets a balloon at all.
    pub enabled: bool,
    /// The device in QEMU.
    pub device: Device,
    /// Whether a VM with devices passed through (VFIO) gets one, which then starts paused.
    pub passthrough: bool,
    /// Whether a VM on huge pages gets one, which then discards whole huge pages.
    pub hugepages: bool,
    /// Whether discarding waits for an operator.
    pub paused: bool,
    /// Whether the host may ask for the guest's statistics.
    pub statistics: bool,
    /// Seconds between two polls of the statistics; 0 for none.
    pub statistics_interval: u32,
    /// Whether the guest may deflate the balloon when it runs out of memory.
    pub deflate_on_oom: bool,
    /// Bytes in the balloon from the start.
    pub target_bytes: u64,
    /// Name of the VM in status and metrics.
    pub name: String,
}

/// The annotations: the one place where their names are.
#[derive(Clone, Copy)]
enum Annotation {
    Enabled,
    Device,
    Passthrough,
    Hugepages,
    Paused,
    Statistics,
    StatisticsInterval,
    DeflateOnOom,
    Target,
}

impl Annotation {
    const ALL: [Self; 9] = [
        Self::Enabled,
        Self::Device,
        Self::Passthrough,
        Self::Hugepages,
        Self::Paused,
        Self::Statistics,
        Self::StatisticsInterval,
        Self::DeflateOnOom,
        Self::Target,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Device => "device",
            Self::Passthrough => "passthrough",
            Self::Hugepages => "hugepages",
            Self::Paused => "paused",
            Self::Statistics => "statistics",
            Self::StatisticsInterval => "statistics-interval",
            Self::DeflateOnOom => "deflate-on-oom",
            Self::Target => "target",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    fn error(self, got: &str, expected: &'static str) -> OptionsError {
        OptionsError::Value { name: self.name(), got: got.to_owned(), expected }
    }

    fn truth(self, value: &str) -> Result<bool, OptionsError> {
        bool::from_str(value).map_err(|_| self.error(value, "\"true\" or \"false\""))
    }

    /// A quantity of Kubernetes in whole bytes, with a power of 1024 if any.
    fn bytes(self, value: &str) -> Result<u64, OptionsError> {
        let expected = "bytes, or a number with Ki, Mi, Gi or Ti";
        let suffixes = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("", 0)];
        let split = |(suffix, shift)| value.strip_suffix(suffix).map(|number| (number, shift));
        let (number, shift) = suffixes.into_iter().find_map(split).unwrap_or((value, 0));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let parsed = digits.then(|| u64::from_str(number).ok()).flatten();
        parsed
            .and_then(|number| number.checked_mul(1 << shift))
            .ok_or_else(|| self.error(value, expected))
    }
}

#[derive(Deserialize)]
struct Vmi {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Options {
    /// Reads a VirtualMachineInstance as KubeVirt sends it.
    ///
    /// # Errors
    /// [`OptionsError`]
    pub fn read(vmi: &[u8]) -> Result<Self, OptionsError> {
        let Vmi { metadata } = serde_json::from_slice(vmi).map_err(OptionsError::NotAVmi)?;
        let mut options = Self {
            enabled: true,
            device: Device::default(),
            passthrough: false,
            hugepages: false,
            paused: false,
            statistics: true,
            statistics_interval: 0,
            deflate_on_oom: true,
            target_bytes: 0,
            name: vm_name(&metadata),
        };
        let annotations = metadata.annotations.unwrap_or_default();
        let ours =
            |(name, value): (String, String)| Some((name.strip_prefix(PREFIX)?.to_owned(), value));
        for (name, value) in annotations.into_iter().filter_map(ours) {
            let known = Annotation::ALL.into_iter().find(|known| known.name() == name);
            options.take(known.ok_or(OptionsError::Unknown(name))?, &value)?;
        }
        Ok(options)
    }

    fn take(&mut self, annotation: Annotation, value: &str) -> Result<(), OptionsError> {
        let truth = || annotation.truth(value);
        match annotation {
            Annotation::Enabled => self.enabled = truth()?,
            Annotation::Device => {
                self.device = match value {
                    "generic" => Device::Generic,
                    "vhost-user-balloon" => Device::VhostUserBalloon,
                    _ => {
                        return Err(
                            annotation.error(value, "\"generic\" or \"vhost-user-balloon\"")
                        );
                    }
                }
            }
            Annotation::Passthrough => {
                self.passthrough = match value {
                    "refused" => false,
                    "paused" => true,
                    _ => return Err(annotation.error(value, "\"refused\" or \"paused\"")),
                }
            }
            Annotation::Hugepages => self.hugepages = truth()?,
            Annotation::Paused => self.paused = truth()?,
            Annotation::Statistics => self.statistics = truth()?,
            Annotation::StatisticsInterval => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let seconds = digits.then(|| value.parse().ok()).flatten();
                let error = || annotation.error(value, "whole seconds");
                self.statistics_interval = seconds.ok_or_else(error)?;
            }
            Annotation::DeflateOnOom => self.deflate_on_oom = truth()?,
            Annotation::Target => self.target_bytes = annotation.bytes(value)?,
        }
        Ok(())
    }

    /// Options of the daemon's command line, for a VM that has devices passed through or not.
    #[must_use]
    pub fn daemon_arguments(&self, has_passthrough: bool) -> Vec<String> {
        let flag = |given: bool, name: &str| given.then(|| name.to_owned());
        let mut arguments = Vec::new();
        if !self.name.is_empty() {
            arguments.extend(["--name".to_owned(), self.name.clone()]);
        }
        arguments.extend(flag(self.statistics, "--statistics"));
        if self.statistics && self.statistics_interval != 0 {
            let seconds = self.statistics_interval.to_string();
            arguments.extend(["--statistics-interval".to_owned(), seconds]);
        }
        arguments.extend(flag(self.hugepages, "--hugetlb"));
        arguments.extend(flag(self.paused || has_passthrough, "--paused"));
        arguments.extend(flag(self.deflate_on_oom, "--deflate-on-oom"));
        if self.target_bytes != 0 {
            arguments.extend(["--target".to_owned(), self.target_bytes.to_string()]);
        }
        arguments
    }
}

/// The VM's name in its namespace, or its UID where that is too long for the daemon.
fn vm_name(metadata: &Metadata) -> String {
    let Metadata { name, namespace, uid, .. } = metadata;
    let name = match namespace.is_empty() {
        true => name.clone(),
        false => format!("{namespace}/{name}"),
    };
    let fits = |name: &str| name.len() <= LONGEST_NAME && !name.chars().any(char::is_control);
    [name, uid.clone()].into_iter().find(|name| fits(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(annotations: &[(&str, &str)]) -> Result<Options, OptionsError> {
        let own =
            annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).into()));
        let mut all: serde_json::Map<String, serde_json::Value> = own.collect();
        all.insert("kubevirt.io/latest-observed-api-version".into(), "v1".into());
        let metadata = json!({ "name": "vm1", "namespace": "shop", "annotations": all });
        Options::read(json!({ "metadata": metadata, "spec": {} }).to_string().as_bytes())
    }

    #[test]
    fn a_vm_without_annotations_gets_a_balloon() {
        let options = read(&[]).unwrap();
        assert!(options.enabled);
        assert_eq!(options.device, Device::Generic);
        assert_eq!(
            options.daemon_arguments(false),
            ["--name", "shop/vm1", "--statistics", "--deflate-on-oom"]
        );
        let bare = Options::read(br#"{"metadata": {"annotations": null}}"#).unwrap();
        assert_eq!(bare.daemon_arguments(false), ["--statistics", "--deflate-on-oom"]);
    }

    #[test]
    fn each_annotation_sets_its_option() {
        let with = |name, value| read(&[(name, value)]).unwrap();
        assert!(!with("enabled", "false").enabled);
        assert_eq!(with("device", "vhost-user-balloon").device, Device::VhostUserBalloon);
        assert!(with("passthrough", "paused").passthrough);
        let arguments = |name, value| with(name, value).daemon_arguments(false)[2..].join(" ");
        assert_eq!(arguments("hugepages", "true"), "--statistics --hugetlb --deflate-on-oom");
        assert_eq!(arguments("paused", "true"), "--statistics --paused --deflate-on-oom");
        assert_eq!(arguments("statistics", "false"), "--deflate-on-oom");
        assert_eq!(
            arguments("statistics-interval", "10"),
            "--statistics --statistics-interval 10 --deflate-on-oom"
        );
        assert_eq!(arguments("deflate-on-oom", "false"), "--statistics");
        assert_eq!(arguments("target", "2Mi"), "--statistics --deflate-on-oom --target 2097152");
        assert_eq!(with("passthrough", "paused").daemon_arguments(true)[3], "--paused");
    }

    #[test]
    fn a_wrong_value_names_annotation_and_remedy() {
        for (name, value) in [
            ("enabled", "yes"),
            ("device", "virtio"),
            ("passthrough", "true"),
            ("hugepages", ""),
            ("statistics-interval", "-1"),
            ("statistics-interval", "+1"),
            ("target", "1.5Gi"),
            ("target", "Mi"),
            ("target", "99999999Ti"),
        ] {
            let said = read(&[(name, value)]).unwrap_err().to_string();
            assert!(said.contains(&format!("{PREFIX}{name}: got {value:?}, expected ")), "{said}");
        }
        let said = read(&[("targte", "1Gi")]).unwrap_err().to_string();
        assert!(said.contains("targte") && said.contains("deflate-on-oom, target"), "{said}");
        let said = Options::read(b"[]").unwrap_err().to_string();
        assert!(said.contains("cannot read the VirtualMachineInstance"), "{said}");
    }

    #[test]
    fn a_name_too_long_for_the_daemon_becomes_the_uid() {
        let name = "n".repeat(253);
        let metadata = json!({ "name": name, "namespace": "shop", "uid": "0-1" });
        let vmi = json!({ "metadata": metadata }).to_string();
        assert_eq!(Options::read(vmi.as_bytes()).unwrap().name, "0-1");
    }
}
