// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests and answers of HTTP/1.1 as bytes (RFC 9112). Pure: no socket.
//!
//! Only what a control socket needs: bodies with a length, no chunks, no trailers, no upgrade.

use serde::Serialize;

use super::negotiate::wants_openmetrics;

/// The most bytes of a request line and header fields.
pub(crate) const MAX_HEAD: usize = 8 << 10;
/// The most bytes of a body. All that is asked for here takes less than 100.
pub(crate) const MAX_BODY: usize = 56 << 10;
/// The most header fields of a request.
const MAX_FIELDS: usize = 64;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// `GET` and the like.
    pub method: &'a str,
    /// What for: a path.
    pub path: &'a str,
    /// What follows the path behind a question mark; `None` without one.
    pub query: Option<&'a str>,
    /// Whether metrics are wanted as OpenMetrics 1.0.
    pub openmetrics: bool,
    /// What came with it; empty if nothing did.
    pub body: &'a [u8],
    /// Whether the client may ask for more on the same connection.
    pub keep_alive: bool,
}

/// Reads one request from the beginning of `bytes`, and says how many bytes it takes; `None` if
/// more must come.
///
/// # Errors
/// The answer to what is no request, or is one that is too large. Nothing behind it can be trusted.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Request<'_>, usize)>, Response> {
    // Line ends before a request are no harm (RFC 9112, 2.2), and endless ones count as its head.
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let head_len = match parsed.parse(head) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(Response::error(
                431,
                format!("expected at most {MAX_HEAD} bytes of request line and headers"),
            ));
        }
        Err(httparse::Error::TooManyHeaders) => {
            let text = format!("expected at most {MAX_FIELDS} header fields");
            return Err(Response::error(431, text));
        }
        Err(error) => {
            return Err(Response::error(400, format!("expected an HTTP/1.1 request: {error}")));
        }
    };
    let (Some(method), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Response::error(400, "expected an HTTP/1.1 request"));
    };
    let Head { body_len, keep_alive, openmetrics } = Head::read(parsed.headers, version)?;
    let Some(len) = head_len.checked_add(body_len).filter(|len| *len <= bytes.len()) else {
        return Ok(None);
    };
    let body = &bytes[head_len..len];
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    Ok(Some((Request { method, path, query, openmetrics, body, keep_alive }, len)))
}

/// What the header fields say about the message itself.
struct Head {
    body_len: usize,
    keep_alive: bool,
    openmetrics: bool,
}

impl Head {
    fn read(fields: &[httparse::Header<'_>], version: u8) -> Result<Self, Response> {
        let mut body_len = None;
        let mut keep_alive = version >= 1;
        let mut hosts = 0;
        for field in fields {
            let is = |name| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                // Twice, or as a list: two readers may not agree on where the next request starts.
                let len = content_length(field.value)?;
                if body_len.replace(len).is_some() {
                    return Err(Response::error(400, "expected at most one Content-Length"));
                }
            } else if is("transfer-encoding") {
                let text = "expected a body with a Content-Length and no Transfer-Encoding";
                return Err(Response::error(411, text));
            } else if is("connection") {
                for option in field.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    keep_alive = match () {
                        () if option.eq_ignore_ascii_case(b"close") => false,
                        () if option.eq_ignore_ascii_case(b"keep-alive") => true,
                        () => keep_alive,
                    };
                }
            } else if is("host") {
                hosts += 1;
            }
        }
        if version >= 1 && hosts != 1 {
            return Err(Response::error(400, "expected one Host header; any host will do"));
        }
        let accept = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("accept"));
        let openmetrics = wants_openmetrics(accept.map(|field| field.value));
        Ok(Self { body_len: body_len.unwrap_or(0), keep_alive, openmetrics })
    }
}

fn content_length(value: &[u8]) -> Result<usize, Response> {
    let digits = value.trim_ascii();
    let text = std::str::from_utf8(digits).ok().filter(|text| !text.is_empty());
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(text) = text else {
        return Err(Response::error(400, "expected a Content-Length that is a number of bytes"));
    };
    match text.parse() {
        Ok(len) if len <= MAX_BODY => Ok(len),
        _ => Err(Response::error(413, format!("expected a body of at most {MAX_BODY} bytes"))),
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// 200 and the like.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The methods that there are, for an answer to one that there is not.
    pub allow: Option<String>,
    /// The text.
    pub body: String,
}

/// The answer to a request that was refused.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ErrorBody<'a> {
    /// What failed, why, and the remedy; for people.
    error: &'a str,
}

impl Response {
    /// `value` as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(mut body) => {
                body.push('\n');
                Self { status: 200, content_type: "application/json", allow: None, body }
            }
            // No value here can fail: their keys are strings.
            Err(error) => Self::error(500, error.to_string()),
        }
    }

    /// `{"error": "..."}` with a status of its own.
    pub(crate) fn error(status: u16, text: impl AsRef<str>) -> Self {
        Self { status, ..Self::json(&ErrorBody { error: text.as_ref() }) }
    }

    /// The answer as it goes over the wire, to `HEAD` without its body (RFC 9110, 9.3.2).
    pub(crate) fn to_bytes(&self, keep_alive: bool, head: bool) -> Vec<u8> {
        let Self { status, content_type, allow, body } = self;
        let allow =
            allow.as_ref().map(|methods| format!("Allow: {methods}\r\n")).unwrap_or_default();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\n{allow}Connection: {connection}\r\n\r\n{}",
            reason(*status),
            body.len(),
            if head { "" } else { body }
        )
        .into_bytes()
    }
}

/// What the statuses are called that are used here (RFC 9110, section 15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GET: &[u8] = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const PUT: &[u8] =
        b"PUT /v1/target HTTP/1.1\r\nhost: x\r\ncontent-LENGTH: 13\r\n\r\n{\"bytes\": 0}\n";

    fn status(bytes: &[u8]) -> u16 {
        parse(bytes).unwrap_err().status
    }

    fn with(fields: &str) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes()
    }

    #[test]
    fn a_request_is_read_when_all_of_it_has_come() {
        for whole in [GET, PUT] {
            for len in 0..whole.len() {
                assert_eq!(parse(&whole[..len]), Ok(None), "{len}");
            }
        }
        let (request, len) = parse(PUT).unwrap().unwrap();
        assert_eq!((request.method, request.path), ("PUT", "/v1/target"));
        assert_eq!((request.body, len), (&b"{\"bytes\": 0}\n"[..], PUT.len()));
        // The next request is left where it is.
        let both = [GET, PUT].concat();
        let (request, len) = parse(&both).unwrap().unwrap();
        assert_eq!((request.body, len), (&b""[..], GET.len()));
        assert!(request.keep_alive);
    }

    #[test]
    fn who_wants_the_connection_closed_has_it_closed() {
        let keep_alive = |bytes: &[u8]| parse(bytes).unwrap().unwrap().0.keep_alive;
        assert!(!keep_alive(&with("Connection: foo, Close\r\n")));
        assert!(!keep_alive(b"GET / HTTP/1.0\r\n\r\n"));
        assert!(keep_alive(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn what_is_no_request_is_told_so_at_once() {
        for garbage in [&b"\0\x01\x02"[..], b"\xff", b"GET / SMTP", b"GET / HTTP/2.0\r\n"] {
            assert_eq!(status(garbage), 400, "{garbage:?}");
        }
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status(&with("Host: y\r\n")), 400);
        for length in ["-1", "+1", "0x1", "1,1", "", "1 1", "1\r\nContent-Length: 1"] {
            assert_eq!(status(&with(&format!("Content-Length: {length}\r\n"))), 400, "{length}");
        }
        assert_eq!(status(&with("Transfer-Encoding: chunked\r\n")), 411);
    }

    #[test]
    fn what_is_too_large_is_told_so_before_it_has_come() {
        for length in ["57345", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(status(&with(&format!("Content-Length: {length}\r\n"))), 413);
        }
        assert_eq!(status(&with(&"A: b\r\n".repeat(64))), 431);
        let long = with(&format!("A: {}\r\n", "b".repeat(MAX_HEAD)));
        assert_eq!(parse(&long[..MAX_HEAD - 1]), Ok(None));
        assert_eq!(status(&long[..MAX_HEAD]), 431);
        assert_eq!(status(&b"\r\n".repeat(MAX_HEAD)), 431);
        let body = with(&format!("Content-Length: {MAX_BODY}\r\n"));
        assert_eq!(parse(&body), Ok(None));
        assert!(parse(&[body, vec![0; MAX_BODY]].concat()).unwrap().is_some());
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let response =
            Response { allow: Some("GET, PUT".to_owned()), ..Response::error(405, "expected GET") };
        let text = String::from_utf8(response.to_bytes(false, false)).unwrap();
        assert_eq!(
            response.to_bytes(false, true),
            text.split_inclusive("\r\n\r\n").next().unwrap().as_bytes()
        );
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"error\":\"expected GET\"}\n");
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{head}");
        for line in ["Content-Length: 25", "Connection: close", "Allow: GET, PUT"] {
            assert!(head.lines().any(|found| found == line), "{head}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes: Vec<u8>, cut in 0..PUT.len()) {
            let _ = parse(&bytes);
            if let Ok(Some((_, len))) = parse(&[&PUT[..cut], &bytes].concat()) {
                prop_assert!(len <= cut + bytes.len());
            }
        }
    }
}
