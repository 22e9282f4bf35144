// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How `top` leaves the terminal.

use rustix::process::Signal;
use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes};
use terminal_screen::{Screen, Terminal};

use super::{Host, SOON};

/// What ends it.
type End = fn(&Terminal);

type Modes = (InputModes, OutputModes, ControlModes, LocalModes);

fn modes(terminal: &Terminal) -> Modes {
    let modes = terminal.modes().unwrap();
    (modes.input_modes, modes.output_modes, modes.control_modes, modes.local_modes)
}

#[test]
fn terminal_is_as_before_after_each_end() {
    let mut host = Host::new();
    host.daemon("web");
    let ends: [(&str, End); 5] = [
        ("q", |top| top.press("q").unwrap()),
        ("ctrl-C", |top| top.press("\u{3}").unwrap()),
        ("SIGTERM", |top| top.signal(Signal::TERM).unwrap()),
        ("SIGINT", |top| top.signal(Signal::INT).unwrap()),
        ("SIGHUP", |top| top.signal(Signal::HUP).unwrap()),
    ];
    // What a terminal is when it is opened: the first modes may already be those of the program.
    let plain = Terminal::start(&mut std::process::Command::new("true"), 100, 20).unwrap();
    let before = modes(&plain);
    for (name, end) in ends {
        let mut top = host.top(100, 20);
        top.wait_for(SOON, |text| text.contains("no_frontend")).unwrap();
        let draws = |screen: &Screen| screen.alternate_screen() && screen.hide_cursor();
        assert!(modes(&top) != before && draws(&top.screen()), "{name}");
        end(&top);
        let status = top.wait(SOON).unwrap();
        assert!(status.success(), "{name}: {status}");
        // What it wrote last may still be on its way.
        let is_left = |screen: &Screen| !screen.alternate_screen() && !screen.hide_cursor();
        top.wait_for_screen(SOON, is_left).unwrap();
        assert_eq!(modes(&top), before, "{name}");
    }
}
