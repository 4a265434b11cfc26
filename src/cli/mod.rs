//! Arguments, wiring, output. The only module that reads flags or the environment, and the only one that prints.

mod args;
mod cluster;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use crate::{admission, api, telemetry};

pub use args::{Cli, Command};

/// Runs the program. Exit codes: 0 done, 1 the work failed (message on stderr), 2 bad usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Crds => print(&api::crds_yaml().map_err(anyhow::Error::from)),
        Command::WebhookConfiguration(args) => {
            print(&admission::configuration::static_yaml(&args.namespace).map_err(anyhow::Error::from))
        }
        Command::Run(args) => serve(&args.common.clone(), serve::Roles::run(args)),
        Command::Webhook(args) => serve(&args.common.clone(), serve::Roles::webhook(args)),
        Command::Sync(args) => serve(&args.common.clone(), serve::Roles::sync(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kimup: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn print(text: &anyhow::Result<String>) -> anyhow::Result<()> {
    use std::io::Write;
    let text = text.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn serve(common: &args::Common, roles: anyhow::Result<serve::Roles>) -> anyhow::Result<()> {
    let roles = roles?;
    telemetry::init(common.log_format, &common.log_level)?;
    // reqwest and rustls have no provider of their own: one is chosen for the whole process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(workers()).build()?;
    let done = runtime.block_on(serve::run(common.clone(), roles));
    // What still blocks (a DNS look-up, say) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    done
}

/// Threads: what the process may use, but no more than four. The work is waiting, not computing.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4))
}
