//! `vhost-device-balloon`: see `--help`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use vhost_device_balloon::{Config, args::Args, run};

fn main() -> ExitCode {
    match start(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("vhost-device-balloon: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> Result<(), Box<dyn Error>> {
    let config = Config::try_from(args)?;
    env_logger::Builder::new()
        .filter_level(config.log_level)
        // These log at a rate that the guest chooses; what matters of it is logged here as well.
        .filter_module("virtio_queue", log::LevelFilter::Off)
        .format_timestamp_millis()
        .init();
    Ok(run(&config)?)
}
