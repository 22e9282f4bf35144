// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The windows, their variants, and what shows that Linux fails in one.

use anyhow::Result;

use super::step::{Step, Steps};

/// A window.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Window {
    /// A block is freed while its pageblock is isolated, and the isolation ends after the pass.
    FreedWhileIsolated,
    /// A part of a block is isolated while a report has the block.
    HalfIsolated,
    /// `alloc_contig_range` is asked for a block that another party has isolated.
    ContigOfIsolated,
    /// A pass ends early.
    PassEnds,
    /// A pass skips a zone that is low.
    LowZone,
    /// A block is pulled off its free list, and put back.
    PullCost,
}

/// A way to make a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The window.
    pub window: Window,
    /// The name of the variant.
    pub name: &'static str,
    /// What it does, in a few words.
    pub what: &'static str,
    /// Whether Linux must do it well, so that the other variants have something to be compared with.
    pub control: bool,
}

const fn variant(window: Window, name: &'static str, what: &'static str) -> Variant {
    Variant { window, name, what, control: false }
}

const fn control(window: Window, name: &'static str, what: &'static str) -> Variant {
    Variant { window, name, what, control: true }
}

impl Window {
    /// All windows.
    pub const ALL: [Self; 6] = [
        Self::FreedWhileIsolated,
        Self::HalfIsolated,
        Self::ContigOfIsolated,
        Self::PassEnds,
        Self::LowZone,
        Self::PullCost,
    ];

    /// The ways to make it.
    pub fn variants(self) -> &'static [Variant] {
        use Window::{
            ContigOfIsolated, FreedWhileIsolated, HalfIsolated, LowZone, PassEnds, PullCost,
        };
        const FREED: &[Variant] = &[
            variant(FreedWhileIsolated, "held", "isolated until after the pass"),
            control(FreedWhileIsolated, "brief", "isolated, but not until the pass"),
            control(FreedWhileIsolated, "none", "not isolated"),
        ];
        const HALF: &[Variant] = &[
            variant(HalfIsolated, "second", "the second half is isolated"),
            variant(HalfIsolated, "first", "the first half is isolated"),
            control(HalfIsolated, "whole", "both halves are isolated"),
            control(HalfIsolated, "none", "nothing is isolated"),
        ];
        const CONTIG: &[Variant] = &[
            variant(ContigOfIsolated, "asked", "it is asked, and fails"),
            control(ContigOfIsolated, "alone", "nobody asks"),
        ];
        const ENDS: &[Variant] = &[
            variant(PassEnds, "watermark", "the min watermark stops the pulls"),
            variant(PassEnds, "error", "the report fails"),
            control(PassEnds, "none", "the report succeeds"),
        ];
        const LOW: &[Variant] = &[
            variant(LowZone, "low", "memory comes back in small pieces after the pass"),
            control(LowZone, "in-time", "it comes back before the pass"),
        ];
        const PULL: &[Variant] =
            &[variant(PullCost, "all", "blocks of four orders, and one that is isolated")];
        match self {
            FreedWhileIsolated => FREED,
            HalfIsolated => HALF,
            ContigOfIsolated => CONTIG,
            PassEnds => ENDS,
            LowZone => LOW,
            PullCost => PULL,
        }
    }

    /// Whether Linux did what a variant that is no control is there to show.
    ///
    /// # Errors
    /// If the steps are not those of this window.
    pub fn is_shown(self, steps: &Steps) -> Result<bool> {
        match self {
            Self::FreedWhileIsolated => {
                let (quiet, after) = (steps.at("quiet")?, steps.at("after-large-free")?);
                Ok(free_movable(quiet)?
                    && quiet.word("reported")? == "0"
                    && quiet.word("worker")? == "idle"
                    && after.word("reported")? == "1")
            }
            Self::HalfIsolated => {
                let block = steps.at("put-back")?;
                Ok(block.word("order")? == "10" && block.word("first")? != block.word("second")?)
            }
            Self::ContigOfIsolated => {
                let (before, after) = (steps.at("isolated")?, steps.at("after-contig")?);
                let isolated =
                    |block: &Step| Ok::<_, anyhow::Error>(block.word("first")? == "isolate");
                Ok(isolated(before)?
                    && !isolated(after)?
                    && steps.at("allocation")?.word("handed-out")? == "1")
            }
            Self::PassEnds | Self::LowZone => {
                let (quiet, after) = (steps.at("quiet")?, steps.at("after-large-free")?);
                let all: u32 = quiet.number("of")?;
                Ok(quiet.number::<u32>("free")? == all
                    && quiet.number::<u32>("reported")? < all
                    && quiet.word("worker")? == "idle"
                    && after.number::<u32>("reported")? == all)
            }
            Self::PullCost => {
                let ns = |name: &str| steps.at(name)?.number::<u64>("pull-ns");
                Ok(ns("order-9")? > 2 * ns("order-9-isolated")?)
            }
        }
    }
}

/// Whether a block is free as a whole, on the movable list.
fn free_movable(step: &Step) -> Result<bool> {
    Ok(step.word("free")? == "1" && step.word("order")? == "9" && step.word("first")? == "movable")
}

/// Whether a block of which one half is isolated was allocated.
///
/// # Errors
/// If the steps are not those of [`Window::HalfIsolated`].
pub fn isolated_half_is_handed_out(steps: &Steps) -> Result<bool> {
    let block = steps.at("allocated")?;
    Ok(steps.at("allocation")?.word("handed-out")? == "1"
        && block.word("free")? == "0"
        && [block.word("first")?, block.word("second")?].contains(&"isolate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reported_block_or_waking_worker_shows_nothing() {
        let steps = |reported, worker, after| {
            let text = format!(
                "step=quiet free=1 order=9 reported={reported} first=movable worker={worker}\n\
                 step=after-large-free reported={after}\nresult=0\n"
            );
            Window::FreedWhileIsolated.is_shown(&Steps::parse(&text).unwrap()).unwrap()
        };
        assert!(steps(0, "idle", 1));
        assert!(!steps(1, "idle", 1) && !steps(0, "requested", 1) && !steps(0, "idle", 0));
    }

    #[test]
    fn half_is_handed_out_only_if_it_is_isolated() {
        let steps = |handed_out, second| {
            let text = format!(
                "step=allocation handed-out={handed_out}\n\
                 step=allocated free=0 first=movable second={second}\nresult=0\n"
            );
            isolated_half_is_handed_out(&Steps::parse(&text).unwrap()).unwrap()
        };
        assert!(steps(1, "isolate"));
        assert!(!steps(0, "isolate") && !steps(1, "movable"));
    }

    #[test]
    fn each_window_but_the_costs_has_a_control() {
        for window in Window::ALL {
            let controls = window.variants().iter().filter(|variant| variant.control).count();
            assert_eq!(controls > 0, window != Window::PullCost, "{window}");
            assert!(window.variants().iter().all(|variant| variant.window == window));
        }
    }
}
