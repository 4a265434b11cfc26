//! Arguments, wiring, output. The only module that reads flags or the environment, and the only one that prints.

mod args;
mod cluster;
mod input;
mod mutate;
mod registries;
mod select;
mod serve;
mod tags;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::telemetry::TelemetryError;
use crate::{admission, api, telemetry};

pub use args::{Cli, Command};

/// Runs the program. Exit codes: 0 done, 1 the work failed (message on stderr, nothing on stdout), 2 bad usage or an
/// invalid rule.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, error) = match failure {
                Failure::Work(error) => (1, error),
                Failure::Usage(error) => (2, error),
            };
            // Not `eprintln!`: it panics when stderr is closed.
            let _ = writeln!(io::stderr(), "kimup: {error:#}");
            ExitCode::from(code)
        }
    }
}

/// Why a command ends badly.
#[derive(Debug)]
enum Failure {
    /// Exit code 1: the command was right, the work failed.
    Work(anyhow::Error),
    /// Exit code 2: bad usage or an invalid rule.
    Usage(anyhow::Error),
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Work(error.into())
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Crds => print(api::crds_yaml()?.as_bytes()),
        Command::WebhookConfiguration(args) => {
            print(admission::configuration::static_yaml(&args.namespace)?.as_bytes())
        }
        Command::Select(args) => print(&select::run(&args)?),
        Command::Tags(args) => print(&tags::run(&args)?),
        Command::Mutate(args) => print(&mutate::run(&args)?),
        Command::Run(args) => serve(&args.common.clone(), serve::Roles::run(args)),
        Command::Webhook(args) => serve(&args.common.clone(), serve::Roles::webhook(args)),
        Command::Sync(args) => serve(&args.common.clone(), serve::Roles::sync(args)),
    }
}

/// Writes a command's whole result. Nothing is printed before it is complete.
fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        // The reader has what it wanted, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|error| Failure::Work(anyhow::anyhow!("cannot write to stdout: {error}"))),
    }
}

fn start_telemetry(format: telemetry::LogFormat, level: &str) -> Result<(), Failure> {
    telemetry::init(format, level).map_err(|error| match error {
        TelemetryError::Level { .. } => Failure::usage(error),
        TelemetryError::AlreadyInitialised => Failure::from(error),
    })
}

/// reqwest and rustls have no provider of their own: one is chosen for the whole process.
fn install_tls_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn serve(common: &args::Common, roles: anyhow::Result<serve::Roles>) -> Result<(), Failure> {
    let roles = roles.map_err(Failure::Usage)?;
    start_telemetry(common.log_format, &common.log_level)?;
    install_tls_provider();
    let runtime = match workers(roles.compute()) {
        // Nobody to share work with, so nothing to be paid for sharing it.
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        threads => tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(threads).build()?,
    };
    let done = runtime.block_on(serve::run(common.clone(), roles));
    // What still blocks (a DNS look-up, say) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(done?)
}

/// Threads: one for each processor that the process may use, but no more than four: the work is mostly waiting. Where some of
/// it computes for long, two at least, so that the rest goes on; else two on one processor would only wake one another.
fn workers(compute: bool) -> usize {
    let least = if compute { 2 } else { 1 };
    std::thread::available_parallelism().map_or(2, |processors| processors.get().clamp(least, 4))
}
