// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A program in a terminal of its own: tests press keys and wait for what its screen shows, and the
//! screen becomes a picture or a recording.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::process::Command;
//! use std::time::Duration;
//! use terminal_screen::Terminal;
//!
//! let terminal = Terminal::start(&mut Command::new("top"), 100, 30)?;
//! terminal.wait_for(Duration::from_secs(5), |screen| screen.contains("load average"))?;
//! terminal.press("q")?;
//! # Ok(())
//! # }
//! ```

mod picture;
mod recording;
mod terminal;

pub use picture::{animation, picture};
pub use recording::{Event, Recording};
pub use terminal::Terminal;
pub use vt100::Screen;
