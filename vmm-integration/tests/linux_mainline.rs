// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows in the free page reporting of an unmodified Linux, each beside a control.

use std::time::Duration;

use vmm_integration::vmm::qemu;
use vmm_integration::windows::WindowGuest;
use vmm_integration::windows::window::{Window, isolated_half_is_handed_out};

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn mainline_fails_in_its_windows_and_nowhere_else() {
    let [delay, quiet] = [200, 1000].map(Duration::from_millis);
    let guest = WindowGuest::boot(&qemu::available().unwrap(), delay, quiet).unwrap();
    for window in [Window::FreedWhileIsolated, Window::HalfIsolated, Window::ContigOfIsolated] {
        for variant in window.variants() {
            let made = guest.make(variant).unwrap();
            let name = format!("{window} {}:\n{}", variant.name, made.steps);
            assert_eq!(window.is_shown(&made.steps).unwrap(), !variant.control, "{name}");
            if window == Window::HalfIsolated {
                let handed_out = isolated_half_is_handed_out(&made.steps).unwrap();
                assert_eq!(handed_out, variant.name == "second", "{name}");
            }
        }
    }
    guest.finish().unwrap();
}
