// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asks a server of this machine over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

const WITHIN: Duration = Duration::from_secs(10);

/// What `GET path` answers.
///
/// # Errors
/// If nothing answers, or the status is not 200; then with the answer.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    // Answers of HTTP/1.0 come in one piece, and end with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("expected an answer of HTTP")?;
    if head.split(' ').nth(1) != Some("200") {
        bail!("{path}: {answer}");
    }
    Ok(body.to_owned())
}

/// Text as a value in a query.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes()
        .map(
            |byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a{b=~\".*\"} + 1"), "a%7Bb%3D~%22.%2A%22%7D%20%2B%201");
    }
}
