// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line, and the process that serves.

use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::daemon::{Sockets, Supervisor};
use crate::domain;
use crate::options::Options;
use crate::protocol::{Client, Empty, InfoResult, path};
use crate::service::{Calls, Hook, NAME};

/// The daemon's program.
const DAEMON: &str = "vhost-device-balloon";
/// Between two looks whether the VM has ended, once this process is told to end; between two tries to accept.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// The last answer of a connection is sent within this.
const CLOSES_WITHIN: Duration = Duration::from_secs(2);
/// virt-launcher waits a second for `Info`.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Gives a VM of KubeVirt the vhost-user balloon, and runs its daemon: a hook sidecar.
///
/// Without a command it serves: it listens in --directory for virt-launcher, adds the balloon to the domain XML of the VM, starts
/// the daemon, and ends it when the VM has ended. Annotations of the VM that begin with `vhost-device-balloon/` set options.
#[derive(Debug, Parser)]
#[command(name = "balloon-kubevirt-hook", version, after_help = AFTER)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER: &str = "\
Signals:
  SIGTERM and SIGINT end the hook and its daemon once no VMM is connected: a pod that ends signals all of its
  containers at once, and the VM still runs.

Exit status:
  0  the VM has ended, or no VMM was connected at SIGTERM; for a command, it succeeded
  1  the hook cannot serve, the domain cannot have a balloon, or `health` found something wrong
  2  the command line is wrong";

#[derive(Args, Debug)]
struct Places {
    /// Folder of hook sockets, which KubeVirt mounts into this container
    #[arg(long, global = true, value_name = "PATH", default_value = "/var/run/kubevirt-hooks")]
    directory: PathBuf,
    /// Where QEMU's container has that folder [default: --directory, and in it $CONTAINER_NAME if that is set]
    #[arg(long, global = true, value_name = "PATH")]
    vmm_directory: Option<PathBuf>,
    /// The daemon's program [default: vhost-device-balloon beside this program, or else in PATH]
    #[arg(long, global = true, value_name = "PATH")]
    daemon: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the domain with the balloon, and start no daemon.
    ///
    /// What KubeVirt's sidecar-shim calls. A program with the name onDefineDomain is this command.
    #[command(name = "onDefineDomain")]
    OnDefineDomain {
        /// The VirtualMachineInstance, as JSON
        #[arg(long, value_name = "JSON")]
        vmi: String,
        /// The domain, as XML
        #[arg(long, value_name = "XML")]
        domain: String,
    },
    /// Ask the hook that serves in --directory and its daemon how they are.
    Health,
}

impl Places {
    /// The daemon's socket as QEMU sees it.
    fn vmm_socket(&self) -> String {
        let inner = || match env::var_os("CONTAINER_NAME") {
            Some(name) => self.directory.join(name),
            None => self.directory.clone(),
        };
        let folder = self.vmm_directory.clone().unwrap_or_else(inner);
        folder.join(Sockets::VMM).to_string_lossy().into_owned()
    }

    fn hook_socket(&self) -> PathBuf {
        self.directory.join(NAME).with_extension("sock")
    }

    fn supervisor(&self) -> Supervisor {
        let beside = || Some(env::current_exe().ok()?.with_file_name(DAEMON));
        let found = || beside().filter(|path| path.exists()).unwrap_or_else(|| DAEMON.into());
        let program = self.daemon.clone().unwrap_or_else(found);
        Supervisor::new(program, Sockets::below(&self.directory))
    }
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let mut words: Vec<OsString> = env::args_os().collect();
    let called = words.first().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|name| name == "onDefineDomain") {
        words.insert(1, "onDefineDomain".into());
    }
    let Cli { places, command } = Cli::parse_from(words);
    let done = match command {
        Some(Command::OnDefineDomain { vmi, domain }) => print_domain(&places, &vmi, &domain),
        Some(Command::Health) => in_runtime(health(&places)),
        None => in_runtime(serve(&places)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("balloon-kubevirt-hook: {error}");
            ExitCode::FAILURE
        }
    }
}

fn in_runtime(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start: {error}"))?.block_on(work)
}

fn print_domain(places: &Places, vmi: &str, domain: &str) -> Result<(), String> {
    let options = Options::read(vmi.as_bytes()).map_err(|error| error.to_string())?;
    if !options.enabled {
        println!("{domain}");
        return Ok(());
    }
    let changed = domain::attach(domain.as_bytes(), &places.vmm_socket(), &options);
    println!("{}", changed.map_err(|error| error.to_string())?.xml);
    Ok(())
}

async fn health(places: &Places) -> Result<(), String> {
    let socket = places.hook_socket();
    let asked = async {
        let mut client = Client::connect(&socket).await.map_err(|error| error.to_string())?;
        let info = client.call::<Empty, InfoResult>(path::INFO, Empty {}).await;
        info.map_err(|error| error.message().to_owned())
    };
    let info = timeout(ANSWERS_WITHIN, asked).await;
    let info = info.unwrap_or_else(|_| Err(format!("no answer within {ANSWERS_WITHIN:?}")));
    let info = info.map_err(|error| format!("no hook serves at {}: {error}", socket.display()))?;
    println!("hook: {} serves {}", info.name, info.versions.join(", "));
    if !Sockets::below(&places.directory).control().exists() {
        println!("daemon: not started, no VM was defined yet");
        return Ok(());
    }
    let status = places.supervisor().status().await.map_err(|error| error.to_string())?;
    let vmm = if status.connected { "a VMM is connected" } else { "no VMM is connected" };
    println!("daemon: {vmm}, driver {}", status.driver);
    Ok(())
}

/// Listens, also where a hook that was killed has left its socket.
async fn listen(socket: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        bound => return bound,
    }
    match UnixStream::connect(socket).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(socket)?;
            UnixListener::bind(socket)
        }
        _ => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
    }
}

async fn serve(places: &Places) -> Result<(), String> {
    let socket = places.hook_socket();
    let listener = listen(&socket).await;
    let listener =
        listener.map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    let no_signals = |error: io::Error| format!("cannot take signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let vmm_socket = places.vmm_socket();
    eprintln!("serving on {}; QEMU finds the daemon at {vmm_socket}", socket.display());
    let daemon = places.supervisor();
    let hook = Arc::new(Hook { vmm_socket, daemon, ended: Notify::new() });
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut looks = interval(LOOKS_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut drains, mut says) = (false, false);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&hook), closing.clone()));
                }
                Err(error) => {
                    eprintln!("cannot accept a connection: {error}");
                    // A reason such as too many open files stays for a while.
                    sleep(LOOKS_EVERY).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = hook.ended.notified() => break,
            _ = terminate.recv() => drains = true,
            _ = interrupt.recv() => drains = true,
            _ = looks.tick(), if drains => {
                if !hook.daemon.may_be_connected().await {
                    break;
                }
                if !std::mem::replace(&mut says, true) {
                    eprintln!("told to end, and the VM still runs: this ends with it");
                }
            }
        }
    }
    // virt-launcher waits for the answer to `Shutdown`.
    let _ = close.send(true);
    let _ =
        timeout(CLOSES_WITHIN, async { while connections.join_next().await.is_some() {} }).await;
    hook.daemon.stop().await;
    let _ = std::fs::remove_file(&socket);
    eprintln!("done");
    Ok(())
}

async fn connection(stream: UnixStream, hook: Arc<Hook>, mut closing: watch::Receiver<bool>) {
    let server = http2::Builder::new(TokioExecutor::new());
    let served = server.serve_connection(TokioIo::new(stream), Calls(hook));
    let mut served = std::pin::pin!(served);
    // A peer that is no client of HTTP/2, or hangs up, ends its own connection.
    let _ = tokio::select! {
        done = &mut served => done,
        _ = closing.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
}
