// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The changelog of a `.deb`.

use anyhow::Result;
use jiff::Timestamp;

use super::about::{MAINTAINER, NAME, RELEASE, VERSION};
use super::date;

/// Returns it. It only points to the changelog of the program.
///
/// # Errors
/// If the sources have no date.
pub(super) fn debian() -> Result<String> {
    let date = Timestamp::from_second(date::seconds()?)?;
    Ok(format!(
        "{NAME} ({VERSION}-{RELEASE}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n \
         -- {MAINTAINER}  {}\n",
        date.strftime("%a, %d %b %Y %H:%M:%S +0000")
    ))
}
