// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways in which a real kernel reports.

/// Mainline's, or the module's with one of its trackers and ways to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum KernelScheme {
    /// A flag on the buddy page, lists that are rotated, and pages that are pulled.
    Mainline,
    /// A bit a section, isolated.
    SectionBitIsolate,
    /// A bit a section, pulled.
    SectionBitPull,
    /// A bitmap of each section, isolated.
    SectionBitmapIsolate,
    /// A bitmap of each section, pulled.
    SectionBitmapPull,
    /// A bitmap of each zone, isolated.
    ZoneBitmapIsolate,
    /// A bitmap of each zone, pulled.
    ZoneBitmapPull,
}

impl KernelScheme {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Mainline,
        Self::SectionBitIsolate,
        Self::SectionBitPull,
        Self::SectionBitmapIsolate,
        Self::SectionBitmapPull,
        Self::ZoneBitmapIsolate,
        Self::ZoneBitmapPull,
    ];

    /// Whether blocks are isolated while they are reported, and not pulled.
    pub(crate) fn isolates(self) -> bool {
        self.to_string().ends_with("isolate")
    }

    /// Parameters of the module; none for mainline.
    pub(crate) fn params(self) -> Option<String> {
        let name = self.to_string();
        let (tracker, hold) = name.rsplit_once('-')?;
        Some(format!("tracker={tracker} hold={hold}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_name_their_parameters() {
        assert_eq!(KernelScheme::Mainline.params(), None);
        let params = KernelScheme::SectionBitmapPull.params().unwrap();
        assert_eq!(params, "tracker=section-bitmap hold=pull");
    }
}
