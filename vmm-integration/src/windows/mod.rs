// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows in the free page reporting of an unmodified Linux, which the module `mainline_windows`
//! makes in a guest.
//!
//! | file | content |
//! |---|---|
//! | [`window`] | the windows, their variants, and what shows that Linux fails in one |
//! | [`step`] | the exact states that the module prints |

pub mod step;
pub mod window;

use std::time::Duration;

use anyhow::{Result, bail};
use guest_agent::Failure;

use self::step::Steps;
use self::window::Variant;
use crate::linux_guest::modules::MAINLINE_WINDOWS;
use crate::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const FOLDER: &str = "/sys/kernel/debug/mainline_windows";
/// Linux has it since 7.3; before, the delay is fixed.
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// Without it a pageblock whose pages the kernel uses cannot be isolated.
const MOVABLE: &str = "movablecore=256M";
/// So often a window is made until no other large free disturbs it.
const ATTEMPTS: u32 = 5;

/// A guest with the module, beside QEMU's own balloon.
pub struct WindowGuest {
    guest: LinuxGuest,
}

/// What came of a window.
#[derive(Clone, Debug)]
pub struct Made {
    /// The states, step by step.
    pub steps: Steps,
    /// How often something else had freed a large block meanwhile, which asks for a pass.
    pub disturbed: u32,
}

impl WindowGuest {
    /// Boots a guest, and loads the balloon driver and the module.
    ///
    /// # Errors
    /// If the module cannot be built or the guest does not boot, or the module refuses its kernel.
    pub fn boot(toolbox: &Toolbox, delay: Duration, quiet: Duration) -> Result<Self> {
        let config = GuestConfig {
            memory_bytes: 768 << 20,
            balloon: Balloon::Qemu,
            kernel_args: vec![MOVABLE.to_owned()],
            own_modules: true,
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(toolbox, config)?;
        let agent = guest.agent();
        guest.load_balloon_driver("")?;
        if agent.read_file(DELAY).is_ok() {
            agent.write_file(DELAY, &delay.as_millis().to_string())?;
        }
        let quiet = format!("quiet_ms={}", quiet.as_millis());
        agent.load_module(MAINLINE_WINDOWS, &quiet)?;
        Ok(Self { guest })
    }

    /// As `uname -r` prints it.
    pub fn kernel_release(&self) -> &str {
        &self.guest.hello().kernel_release
    }

    /// Makes a window, again if something else in the guest disturbs it.
    ///
    /// # Errors
    /// If it cannot be made, or is disturbed each time.
    pub fn make(&self, variant: &Variant) -> Result<Made> {
        let agent = self.guest.agent();
        let command = format!("{} {}", variant.window, variant.name);
        for disturbed in 0..ATTEMPTS {
            let made = agent.write_file(&format!("{FOLDER}/run"), &command);
            let text = agent.read_file(&format!("{FOLDER}/result"))?;
            match made {
                Ok(()) => return Ok(Made { steps: Steps::parse(&text)?, disturbed }),
                Err(error) => {
                    let failure = error.downcast_ref::<Failure>();
                    let errno = failure.and_then(|failure| failure.errno.as_deref());
                    if errno != Some("EAGAIN") {
                        return Err(error.context(format!("window {command}:\n{text}")));
                    }
                }
            }
        }
        bail!("window {command}: other large frees disturbed it {ATTEMPTS} times")
    }

    /// Unloads the module, which gives the device its function back, and powers the guest off.
    ///
    /// # Errors
    /// If that fails, or QEMU or the kernel complain.
    pub fn finish(self) -> Result<()> {
        let agent = self.guest.agent();
        agent.unload_module(MAINLINE_WINDOWS)?;
        if let Some(complaint) = self.guest.splats()?.first() {
            bail!("the kernel complains: {complaint}");
        }
        let stderr = self.guest.quit()?;
        anyhow::ensure!(stderr.is_empty(), "QEMU complains: {stderr}");
        Ok(())
    }
}
