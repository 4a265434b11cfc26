//! What a newer tag costs the API server when 500 Deployments follow one Image. `make bench-rollouts`.

use std::process::ExitCode;

use kimup_testbed::{Arguments, InFlight, RolloutCost, RolloutLoad};

const USAGE: &str = "usage: kimup-bench-rollouts --kimup PROGRAM

  --kimup PROGRAM  the kimup to measure";

const LIMITS: InFlight = InFlight { group: 8, namespace: 8, cluster: 20 };
const LOAD: RolloutLoad = RolloutLoad { namespaces: 1, deployments: 500, limits: LIMITS };
/// Requests to the API server for each workload.
const MAX_REQUESTS: f64 = 6.0;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read(USAGE, &[]) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    println!("{} Deployments on one Image, {} at a time, two tags: some minutes", LOAD.deployments, LIMITS.group);
    match LOAD.measure(arguments.kimup).await {
        Ok(rounds) => {
            let names = ["never rolled before", "rolled before"];
            let met: Vec<bool> = names.iter().zip(&rounds).map(|(name, cost)| report(name, cost)).collect();
            if met.iter().all(|met| *met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("\nkimup-bench-rollouts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table; whether every bar is met.
#[allow(clippy::cast_precision_loss)]
fn report(name: &str, cost: &RolloutCost) -> bool {
    let per_workload = |count: usize| count as f64 / f64::from(cost.workloads);
    let requests = per_workload(cost.total());
    let rows = [
        ("requests per workload", format!("{requests:.2}"), format!("<= {MAX_REQUESTS}"), requests <= MAX_REQUESTS),
        (
            "most in flight in the group",
            cost.most.group.to_string(),
            format!("<= {}", LIMITS.group),
            cost.most.group <= LIMITS.group,
        ),
        (
            "most in flight in the namespace",
            cost.most.namespace.to_string(),
            format!("<= {}", LIMITS.namespace),
            cost.most.namespace <= LIMITS.namespace,
        ),
        (
            "most in flight in the cluster",
            cost.most.cluster.to_string(),
            format!("<= {}", LIMITS.cluster),
            cost.most.cluster <= LIMITS.cluster,
        ),
    ];
    println!("\n{name:<34} {:>9}  {:<9}", "measured", "bar");
    for (name, measured, bar, met) in &rows {
        println!("{name:<34} {measured:>9}  {bar:<9} {}", if *met { "met" } else { "MISSED" });
    }
    for (request, count) in &cost.requests {
        println!("  {request:<32} {:>9.2}  {count}", per_workload(*count));
    }
    println!("took {:.1} s, processor time of kimup {:.1} s", cost.took.as_secs_f64(), cost.cpu.as_secs_f64());
    rows.iter().all(|row| row.3)
}
