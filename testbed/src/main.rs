//! `kimup-testbed`: the test bed by hand.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use kimup_testbed::{Cluster, Process, ProcessSpec, Registry, run_dir};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage:
  kimup-testbed up                 start a cluster and a registry, print where they are as JSON, end with Ctrl-C
  kimup-testbed up --detach        the same, but leave them running; the JSON names the script that ends them
  kimup-testbed hold PROGRAM ARG…  start a program that ends with this one, print its process ID and folder, wait
                                   for the end of stdin; with `panic` on stdin, panic";

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["up"] => up(false).await,
        ["up", "--detach"] => up(true).await,
        ["hold", program, ref args @ ..] => hold(program, args),
        ["run", "--kubeconfig", _, "--probes-listen", probes, ..] => stand_in(probes).await,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kimup-testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn up(detach: bool) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let started = async { tokio::try_join!(Cluster::start(), Registry::open()) };
    let (cluster, registry) = tokio::select! {
        started = started => started?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let kubeconfig = cluster.admin_kubeconfig().to_owned();
    let mut up = json!({"kubeconfig": kubeconfig, "registry": registry.host(), "folder": run_dir()?.path()});
    if detach {
        registry.leave_running()?;
        up["stop"] = json!(cluster.leave_running()?);
        println!("{up}");
        return Ok(());
    }
    println!("{up}");
    eprintln!("try: kubectl --kubeconfig {} get nodes; Ctrl-C ends it", kubeconfig.display());
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    Ok(())
}

fn hold(program: &str, args: &[&str]) -> Result<()> {
    let folder = run_dir()?.folder("hold")?;
    let spec = ProcessSpec::new("held", program.into(), &folder).args(args.iter().copied());
    // As in a test: whoever starts it is not the thread that lives longest.
    let process = std::thread::spawn(move || Process::spawn(&spec)).join().ok().context("starting failed")??;
    println!("{} {}", process.id(), run_dir()?.path().display());
    let word = std::io::read_to_string(std::io::stdin())?;
    assert_ne!(word.trim(), "panic", "asked for");
    Ok(())
}

/// Stands in for kimup in the tests of this crate: not ready to the first three questions, then ready, with one metric.
async fn stand_in(probes: &str) -> Result<()> {
    let asked = Arc::new(AtomicUsize::new(0));
    let ready = move || async move {
        let ready = asked.fetch_add(1, Ordering::Relaxed) >= 3;
        if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "caches are empty") }
    };
    let router = Router::new()
        .route("/readyz", get(ready))
        .route("/healthz", get(|| async { "alive" }))
        .route("/metrics", get(|| async { "syncs_total{result=\"Success\"} 3\n" }));
    Ok(axum::serve(TcpListener::bind(probes).await?, router).await?)
}
