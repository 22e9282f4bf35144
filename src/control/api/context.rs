// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One request with the device that it is about, and the ways to refuse it.

use std::sync::Arc;
use std::{fmt, io};

use serde::de::DeserializeOwned;

use crate::control::http::{Request, Response};
use crate::control::peer::Peer;
use crate::control::reply::Reply;
use crate::state::State;

pub(super) const NO_FRONTEND: &str = "no VMM is connected";

pub(super) const NO_DRIVER: &str = "no balloon driver runs in the guest: the guest is paused or resets the \
                                    device, or its driver is not loaded";

/// The answer, or one that waits; or the refusal.
pub(super) type Answer = Result<Reply, Response>;

/// A request and the device.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// The device.
    pub state: &'a Arc<State>,
    /// The request, whose route was found.
    pub request: &'a Request<'a>,
    /// The process that sent it: the log names it with everything that it sets.
    pub peer: Peer,
}

impl Context<'_> {
    /// Reads a body of the form of `example`.
    ///
    /// # Errors
    /// The refusal of any other.
    pub(super) fn body<T: DeserializeOwned>(&self, example: &str) -> Result<T, Response> {
        let bytes = self.request.body;
        // A list of the fields' values would do for serde.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err(Response::error(400, format!("expected a body such as {example}")));
        }
        serde_json::from_slice(bytes).map_err(|error| {
            Response::error(400, format!("expected a body such as {example}: {error}"))
        })
    }

    /// Checks that there is no body.
    ///
    /// # Errors
    /// The refusal of one.
    pub(super) fn no_body(&self) -> Result<(), Response> {
        match self.request.body {
            [] => Ok(()),
            _ => Err(Response::error(400, "expected no body")),
        }
    }
}

/// Refuses a well-formed request that the present state does not allow.
pub(super) fn conflict(error: impl fmt::Display) -> Response {
    Response::error(409, error.to_string())
}

/// Refuses a request that the system did not let the daemon carry out.
pub(super) fn unavailable(what: &str, error: &io::Error) -> Response {
    Response::error(503, format!("{what}: {error}"))
}
