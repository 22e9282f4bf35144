// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A connection to Chromium by the [DevTools protocol](https://chromedevtools.github.io/devtools-protocol/),
//! over pipes.
//!
//! The protocol sets the size of the page. The command line sets the size of the window, which a full
//! Chromium never makes narrower than 500 pixels.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::measure::host::wait_until;

/// The longest time for one message.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest time for the browser's exit.
const EXIT: Duration = Duration::from_secs(20);
/// Chromium reads commands from descriptor 3 and writes messages to descriptor 4.
const ON_PIPES: &str = r#"exec "$@" 3<&0 4>&1 </dev/null >/dev/null"#;
/// Events of a console, with the places of their text.
const CONSOLE: [(&str, &str); 3] = [
    ("Runtime.consoleAPICalled", "/params/args/0/value"),
    ("Runtime.exceptionThrown", "/params/exceptionDetails/exception/description"),
    ("Log.entryAdded", "/params/entry/text"),
];

/// A screen to show a page on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Width and height in CSS pixels.
    pub size: (u32, u32),
    /// Whether the reader prefers a dark color scheme.
    pub dark: bool,
}

/// A page as the browser shows it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The document after its scripts ran, as HTML.
    pub html: String,
    /// The messages on its console: errors, and what a script logs.
    pub console: Vec<String>,
    /// The page in the size of the screen, as PNG.
    pub picture: Vec<u8>,
}

/// A browser with one page. Dropping it ends the browser.
pub(super) struct Devtools {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// Messages without an `id` so far.
    events: Vec<Value>,
    sent: u64,
    /// The session of the page, once it is attached.
    session: Option<String>,
}

impl Devtools {
    /// Starts `browser`, a command with its arguments, and opens an empty page.
    ///
    /// # Errors
    /// When the browser does not start or does not speak the protocol; `log` then holds its messages.
    pub(super) fn start(browser: &Command, log: &Path) -> Result<Self> {
        let program = browser.get_program();
        let mut shell = Command::new("sh");
        shell.args(["-c", ON_PIPES, "sh", "env"]);
        // Set by `env`, because a library path for the browser is none for the shell.
        for (name, value) in browser.get_envs() {
            shell.arg([name, value.unwrap_or_default()].join(OsStr::new("=")));
        }
        shell.arg(program).args(browser.get_args()).arg("--remote-debugging-pipe");
        let pipes = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
        let mut child =
            pipes.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let (Some(commands), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{} has no pipes", program.display());
        };
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            // Until the browser ends or the receiver is gone.
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                if serde_json::from_slice(&message)
                    .is_ok_and(|message| sender.send(message).is_err())
                {
                    break;
                }
            }
        });
        let events = Vec::new();
        let mut this = Self { child, commands, messages, events, sent: 0, session: None };
        let page = this.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        let attached = this.call("Target.attachToTarget", attach)?;
        this.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            this.call(domain, json!({}))?;
        }
        Ok(this)
    }

    /// Loads the page at `address`; see [`Loaded`].
    ///
    /// # Errors
    /// When the browser fails or does not answer in time.
    pub(super) fn load(&mut self, address: &str, screen: Screen) -> Result<Loaded> {
        let (width, height) = screen.size;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = if screen.dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}))?;
        self.events.clear();
        let navigated = self.call("Page.navigate", json!({"url": address}))?;
        if let Some(error) = navigated["errorText"].as_str() {
            bail!("cannot load {address}: {error}");
        }
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.receive()?;
            self.events.push(event);
        }
        let html = json!({"expression": "document.documentElement.outerHTML"});
        let html = self.call("Runtime.evaluate", html)?;
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}))?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let console = |event: &Value| {
            let (_, place) = CONSOLE.iter().find(|(method, _)| event["method"] == *method)?;
            event.pointer(place).and_then(text).or_else(|| Some(event.to_string()))
        };
        Ok(Loaded {
            html: text(&html["result"]["value"]).context("the page has no document")?,
            console: self.events.iter().filter_map(console).collect(),
            picture: BASE64_STANDARD
                .decode(text(&picture["data"]).context("the browser drew no picture")?)
                .context("decoding the picture")?,
        })
    }

    /// Sends a command and returns its result. Events that arrive before it are kept.
    fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&command)?;
        bytes.push(0);
        self.commands.write_all(&bytes).with_context(|| format!("sending {method}"))?;
        loop {
            let mut message = self.receive().with_context(|| format!("waiting for {method}"))?;
            if message["id"] == self.sent {
                if let Some(error) = message.get("error") {
                    bail!("{method} failed: {error}");
                }
                return Ok(message["result"].take());
            }
            self.events.push(message);
        }
    }

    fn receive(&self) -> Result<Value> {
        self.messages.recv_timeout(PATIENCE).context("the browser does not answer")
    }
}

impl Drop for Devtools {
    fn drop(&mut self) {
        // The browser ends its own processes if it can; otherwise it is killed.
        self.session = None;
        let closed = self.call("Browser.close", json!({})).is_ok();
        let ended = closed
            && wait_until(EXIT, Duration::from_millis(10), || match self.child.try_wait() {
                Ok(Some(_)) => Ok(()),
                _ => Err("the browser is still running".to_owned()),
            })
            .is_ok();
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
