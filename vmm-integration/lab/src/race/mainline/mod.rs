// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mainline`: windows in Linux's own free page reporting, which a module makes in an unmodified kernel.
//!
//! | file | content |
//! |---|---|
//! | [`settings`] | the parameters |
//! | [`judge`] | figures and the verdict |

mod judge;
mod settings;

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use vmm_integration::windows::WindowGuest;
use vmm_integration::windows::window::Window;

use self::settings::Settings;
use crate::experiment::{Case, Context, Experiment, Repeats};
use crate::guest::{Kernel, toolbox};
use crate::progress;
use crate::store::{Findings, Place, VerdictKind};

/// A window in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InKernel {
    window: Window,
    kernel: Kernel,
}

impl fmt::Display for InKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.window, self.kernel.suffix())
    }
}

impl Case for InKernel {
    fn place(&self) -> Place {
        Place { table: self.window.to_string(), column: self.kernel.to_string() }
    }
}

/// See the module.
pub(super) struct Mainline;

impl Experiment for Mainline {
    type Parameters = Settings;
    type Case = InKernel;

    fn name(&self) -> &'static str {
        "mainline"
    }

    fn about(&self) -> &'static str {
        "Makes windows in the free page reporting of an unmodified Linux, with a module: a block freed while it \
         is isolated, a half of a reported block that is isolated, passes that end or skip a zone and ask for \
         no other, the cost of a pull. Says the exact state of the blocks at each step, beside controls that \
         Linux must do well."
    }

    fn repeats(&self, _: &InKernel) -> Repeats {
        Repeats::ButForTheGuest
    }

    fn cases(&self, settings: &Settings) -> Vec<InKernel> {
        let of = |&kernel| settings.windows.iter().map(move |&window| InKernel { window, kernel });
        settings.kernels.iter().flat_map(of).collect()
    }

    fn run(&self, case: &InKernel, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
        let toolbox = match toolbox()? {
            Ok(toolbox) => case.kernel.of(&toolbox)?,
            Err(why) => return Ok(Findings::verdict(VerdictKind::NotTestable, why)),
        };
        let [delay, quiet] = [settings.delay, settings.quiet].map(Duration::from_millis);
        let guest = WindowGuest::boot(&toolbox, delay, quiet)?;
        let mut all: Vec<_> =
            case.window.variants().iter().map(|variant| (variant, Vec::new())).collect();
        for run in 0..settings.runs {
            context.progress.at(u64::from(run), u64::from(settings.runs));
            for (variant, made) in &mut all {
                progress::check()?;
                made.push(guest.make(variant).with_context(|| format!("run {}", run + 1))?);
            }
        }
        let release = guest.kernel_release().to_owned();
        guest.finish()?;
        judge::findings(case.window, &release, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::{Assignments, Length, Parameters};

    #[test]
    fn each_kernel_has_the_windows_asked_for() {
        let of = |set: &[&str]| -> Vec<String> {
            let set = set.iter().map(|&set| set.to_owned()).collect::<Vec<_>>();
            let set = Assignments::parse(&set).unwrap();
            let settings = Settings::read(Length::Quick, &set).unwrap();
            Mainline.cases(&settings).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of(&[]).len(), Window::ALL.len());
        let few = of(&["kernels=newest,stable", "windows=low-zone"]);
        assert_eq!(few, ["low-zone", "low-zone-stable"]);
    }
}
