//! What a thousand Images cost their registries: requests per repository and interval, tokens per lifetime.
#![allow(clippy::expect_used)]

mod simulation;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use simulation::{Count, Plan};

/// Requests for tags per repository and interval, at most.
const LISTS_BAR: f64 = 1.05;

fn main() -> ExitCode {
    let plan = Plan {
        images: 1000,
        repositories: 400,
        hosts: 8,
        interval: Duration::from_mins(5),
        intervals: 60,
        shared: true,
    };
    let (shared, took) = run(plan);
    let naive_plan = Plan { intervals: 6, shared: false, ..plan };
    let (naive, naive_took) = run(naive_plan);
    println!("{} Images on {} repositories of {} hosts, every 5 min", plan.images, plan.repositories, plan.hosts);
    println!("                                     {:>9}  {:>9}", "shared", "naive");
    let row = |name: &str, shared: String, naive: String| println!("{name:<36} {shared:>9}  {naive:>9}");
    row("intervals", plan.intervals.to_string(), naive_plan.intervals.to_string());
    row("syncs", shared.syncs.to_string(), naive.syncs.to_string());
    row("requests for tags", shared.lists.to_string(), naive.lists.to_string());
    row("  of them refused (401)", shared.refused.to_string(), naive.refused.to_string());
    let (lists, naive_lists) = (plan.per_interval(&shared), naive_plan.per_interval(&naive));
    row("  per repository and interval", format!("{lists:.3}"), format!("{naive_lists:.3}"));
    row("  in the busiest second", shared.busiest.to_string(), naive.busiest.to_string());
    row("token requests", shared.tokens.to_string(), naive.tokens.to_string());
    let (tokens, naive_tokens) = (per_lifetime(&shared), per_lifetime(&naive));
    row("  per lifetime and scope", format!("{tokens:.3}"), format!("{naive_tokens:.3}"));
    row("seconds this took", format!("{:.1}", took.as_secs_f64()), format!("{:.1}", naive_took.as_secs_f64()));
    let enough = plan.images * (plan.intervals as usize - 1);
    let bars = [
        (lists <= LISTS_BAR, format!("at most {LISTS_BAR} requests for tags per repository and interval")),
        (shared.tokens == shared.lifetimes, "one token per lifetime and scope".to_owned()),
        (shared.failed == 0 && shared.syncs >= enough, "every sync is done".to_owned()),
    ];
    for (met, bar) in &bars {
        println!("{}: {bar}", if *met { "met" } else { "MISSED" });
    }
    if bars.iter().all(|(met, _)| *met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(plan: Plan) -> (Count, Duration) {
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    (runtime.expect("a runtime").block_on(plan.run()), began.elapsed())
}

#[allow(clippy::cast_precision_loss)]
fn per_lifetime(count: &Count) -> f64 {
    count.tokens as f64 / count.lifetimes.max(1) as f64
}
