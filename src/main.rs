//! `vhost-device-balloon`: see `--help`.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use env_logger::Target;
use vhost_device_balloon::args::{Args, CAPABILITIES, Command};
use vhost_device_balloon::{Config, run};

fn main() -> ExitCode {
    // Whatever else the command line says.
    if env::args_os().any(|arg| arg == "--print-capabilities") {
        let printed = writeln!(io::stdout(), "{CAPABILITIES}");
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut args = Args::parse();
    if let Some(Command::Ctl(ctl)) = args.command.take() {
        return ctl.run();
    }
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("vhost-device-balloon: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            // If nobody can be told, the exit status has to do.
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<(), Box<dyn Error>> {
    let config = Config::try_from(args)?;
    env_logger::Builder::new()
        // What passes is for `log::set_max_level` to say, which can be told anew at any time.
        .filter_level(log::LevelFilter::Debug)
        // These log at a rate that the guest chooses; what matters of it is logged here as well.
        .filter_module("virtio_queue", log::LevelFilter::Off)
        .format_timestamp_millis()
        .target(Target::Pipe(Box::new(PatientStderr)))
        .init();
    log::set_max_level(config.log_level);
    Ok(run(&config)?)
}

/// Standard error that never blocks and never fails: a message for which there is no room is lost.
/// A guest must not stand still because nobody reads the log.
struct PatientStderr;

impl Write for PatientStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr =
            libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) } == 1;
        // A pipe that is ready takes 4096 bytes without blocking; no message is longer.
        if ready && stderr.revents & libc::POLLOUT != 0 {
            let _ = io::stderr().write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
