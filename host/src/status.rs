// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `status`: what hostd knows, as a table.

use std::fmt::Write;
use std::path::Path;

use crate::log::chain;
use crate::sockets::{AskError, Daemon};
use crate::views::{GuestView, HostView};

/// Asks the hostd that listens at `socket`, and returns what to print.
///
/// # Errors
/// If none answers.
pub(crate) async fn status(socket: &Path, as_json: bool) -> Result<String, String> {
    let failed = |error: AskError| match error {
        AskError::NoDaemon(error) => format!("no hostd answers at {}: {error}", socket.display()),
        other => chain(&other),
    };
    let hostd = Daemon::new(socket);
    if as_json {
        let answer = hostd.ask("GET", "/v1/host", None).await.map_err(failed)?;
        return Ok(String::from_utf8_lossy(&answer).into_owned());
    }
    Ok(table(&hostd.get("/v1/host").await.map_err(failed)?))
}

fn table(host: &HostView) -> String {
    let mut text = String::new();
    let dry = if host.dry_run { ", dry run" } else { "" };
    let pressure = host.pressure_percent.map(|percent| format!(", pressure {percent} %"));
    // Writing to memory does not fail.
    let _ = writeln!(
        text,
        "{}{dry}: {} of {} available{}",
        host.state,
        size(host.available_bytes),
        size(host.total_bytes),
        pressure.unwrap_or_default()
    );
    if let Some(policy) = &host.policy {
        let refused = policy.refused.as_ref().map(|why| format!(", refused: {why}"));
        let _ = writeln!(text, "policy {}{}", policy.file, refused.unwrap_or_default());
    }
    let head = ["VM", "memory", "base", "floor", "balloon", "left", "lease", "sample", "why"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(host.guests.iter().map(row));
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.push_str(&row[8]);
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn row(guest: &GuestView) -> [String; 9] {
    let seconds = |seconds: Option<f64>| match seconds {
        Some(seconds) => format!("{seconds:.1} s"),
        None => "-".to_owned(),
    };
    [
        guest.name.clone(),
        size(guest.memory_bytes),
        size(guest.base_bytes),
        size(guest.floor_bytes),
        size(guest.balloon_bytes),
        size(guest.leave_bytes),
        seconds(guest.lease_left_seconds),
        seconds(guest.sample_age_seconds),
        guest.error.clone().or_else(|| guest.why.clone()).unwrap_or_default(),
    ]
}

/// Bytes in the largest unit that they are more than one of.
fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10_240.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_for_each_guest() {
        let guest = GuestView {
            name: "web".to_owned(),
            memory_bytes: Some(16 << 30),
            leave_bytes: Some(512 << 20),
            lease_left_seconds: Some(29.96),
            why: Some("the host is short of memory".to_owned()),
            ..GuestView::default()
        };
        let silent = GuestView {
            name: "b".to_owned(),
            error: Some("no daemon answers".to_owned()),
            ..GuestView::default()
        };
        let host = HostView {
            state: "engaged".to_owned(),
            total_bytes: Some(32 << 30),
            available_bytes: Some(1 << 30),
            pressure_percent: Some(1.5),
            guests: vec![guest, silent],
            ..HostView::default()
        };
        assert_eq!(
            table(&host),
            "engaged: 1024 MiB of 32.0 GiB available, pressure 1.5 %\n\
             VM   memory    base  floor  balloon  left     lease   sample  why\n\
             web  16.0 GiB  -     -      -        512 MiB  30.0 s  -       the host is short of memory\n\
             b    -         -     -      -        -        -       -       no daemon answers\n"
        );
    }
}
