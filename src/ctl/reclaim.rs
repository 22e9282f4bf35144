// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl reclaim` and `ctl park`: help, exit status and text.

use std::time::Duration;

use serde_json::Error;

use crate::cli::exit::CtlExit;
use crate::control::reclaim::ReclaimView;
use crate::values::show_size;

/// How long the answer may take beyond the time that the guest is squeezed: for a look at the resident
/// memory before and after, the guest's confirmation, and a discarding call in progress.
pub(super) const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// The exit status of a reclaim.
pub(super) fn status(answer: &str) -> Result<CtlExit, Error> {
    let view: ReclaimView = serde_json::from_str(answer)?;
    Ok(match view.ended_by.as_str() {
        "silent" => CtlExit::NoAnswer,
        "reached" | "nothing_to_take" | "exhausted" if view.let_go_confirmed => CtlExit::Done,
        _ => CtlExit::EndedEarly,
    })
}

/// What a reclaim came to, in words.
pub(super) fn text(answer: &str) -> Result<String, Error> {
    let view: ReclaimView = serde_json::from_str(answer)?;
    let pressure = view.pressure.as_deref().unwrap_or_default().replace('_', " ");
    let end = match view.ended_by.as_str() {
        "reached" => "the guest gave what it had available".to_owned(),
        "nothing_to_take" => "nothing was available beyond what it keeps".to_owned(),
        "exhausted" => "the guest could give no more".to_owned(),
        "pressure" => format!("ended early: the guest is under pressure ({pressure})"),
        "deadline" => "ended early: the time was up".to_owned(),
        "silent" => "the guest sent no statistics: it is stopped, or too busy".to_owned(),
        "interrupted" => "ended early: interrupted".to_owned(),
        "stopping" => "ended early: the daemon is shutting down".to_owned(),
        "paused" => "ended early: discarding was paused".to_owned(),
        "driver_gone" => "ended early: the driver or the VMM is gone".to_owned(),
        // Of a newer daemon.
        other => other.to_owned(),
    };
    let size = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), show_size);
    let let_go = match (view.let_go_confirmed, view.let_go_seconds) {
        (true, Some(seconds)) => format!("let go and confirmed by the guest in {seconds:.2} s"),
        _ => "let go, not confirmed by the guest".to_owned(),
    };
    let parked = if view.parked { "; parked, discarding is paused until unpark" } else { "" };
    Ok(format!(
        "reclaimed {} in {:.2} s: {end}\n\
         squeezed  {} of {} available, {} to keep\n\
         resident  {} before, {} after\n\
         balloon   {let_go}{parked}\n",
        show_size(view.discarded_bytes),
        view.seconds,
        show_size(view.squeezed_bytes),
        size(view.available_bytes),
        size(view.keep_bytes),
        size(view.resident_before_bytes),
        size(view.resident_after_bytes),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(ended_by: &str, is_confirmed: bool) -> String {
        let pressure = (ended_by == "pressure").then_some("swap_out");
        json!({
            "ended_by": ended_by, "pressure": pressure, "keep_bytes": 256 << 20,
            "available_bytes": 1_u64 << 30, "target_bytes": 768 << 20, "squeezed_bytes": 768 << 20,
            "discarded_bytes": 700 << 20, "resident_before_bytes": 1_u64 << 30,
            "resident_after_bytes": null, "seconds": 1.5, "let_go_seconds": 0.25,
            "let_go_confirmed": is_confirmed, "parked": false,
        })
        .to_string()
    }

    #[test]
    fn status_each_end_expected_code() {
        for (ended_by, is_confirmed, code) in [
            ("reached", true, CtlExit::Done),
            ("exhausted", true, CtlExit::Done),
            ("nothing_to_take", true, CtlExit::Done),
            ("reached", false, CtlExit::EndedEarly),
            ("pressure", true, CtlExit::EndedEarly),
            ("deadline", true, CtlExit::EndedEarly),
            ("silent", true, CtlExit::NoAnswer),
            ("of_a_newer_daemon", true, CtlExit::EndedEarly),
        ] {
            assert_eq!(status(&answer(ended_by, is_confirmed)).unwrap(), code, "{ended_by}");
        }
    }

    #[test]
    fn text_pressure_names_sign_and_sizes() {
        let text = text(&answer("pressure", true)).unwrap();
        for part in ["pressure (swap out)", "700 MiB in 1.50 s", "1 GiB before, unknown after"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
