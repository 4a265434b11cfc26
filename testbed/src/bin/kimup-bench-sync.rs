//! What 200 Images cost `kimup sync` on a real control plane, and how long a refresh takes. `make bench-sync`.

use std::process::ExitCode;
use std::time::Duration;

use kimup_testbed::{Arguments, SyncCost, SyncLoad};

const USAGE: &str = "usage: kimup-bench-sync --kimup PROGRAM

  --kimup PROGRAM  the kimup to measure: a release build";

const LOAD: SyncLoad =
    SyncLoad { images: 200, repositories: 50, interval: Duration::from_mins(1), intervals: 5, refreshes: 50 };
const MAX_CPU: Duration = Duration::from_secs(1);
const MAX_RSS: u64 = 32 << 20;
const MAX_REFRESH: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read(USAGE, &[]) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    println!("{} Images on {} repositories, every minute: about eight minutes", LOAD.images, LOAD.repositories);
    match LOAD.measure(arguments.kimup).await {
        Ok(cost) if report(&cost) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nkimup-bench-sync: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table; whether every bar is met.
fn report(cost: &SyncCost) -> bool {
    let per_repository = u64::from(LOAD.images / LOAD.repositories);
    let wanted = u64::from(LOAD.images * LOAD.intervals);
    let refresh = cost.refresh_p50().unwrap_or(Duration::MAX);
    let rows = [
        ("syncs", cost.syncs.to_string(), format!(">= {wanted}"), cost.syncs >= wanted),
        // One more turn than wanted is one more list.
        (
            "requests for tags",
            cost.lists.to_string(),
            "1 for 4 syncs".to_owned(),
            cost.lists * per_repository <= cost.syncs,
        ),
        ("CPU seconds", seconds(cost.cpu), format!("<= {}", seconds(MAX_CPU)), cost.cpu <= MAX_CPU),
        (
            "most resident memory, MiB",
            mebibytes(cost.peak_rss),
            format!("<= {}", mebibytes(MAX_RSS)),
            cost.peak_rss <= MAX_RSS,
        ),
        ("Kubernetes writes", cost.writes.len().to_string(), "0".to_owned(), cost.writes.is_empty()),
        (
            "refresh to status, p50 ms",
            milliseconds(refresh),
            format!("<= {}", milliseconds(MAX_REFRESH)),
            refresh <= MAX_REFRESH,
        ),
    ];
    println!("{:<28} {:>10}  {:<14}", "", "measured", "bar");
    for (name, measured, bar, met) in &rows {
        println!("{name:<28} {measured:>10}  {bar:<14} {}", if *met { "met" } else { "MISSED" });
    }
    let slowest = cost.refreshes.last().copied().unwrap_or_default();
    println!("intervals took {} s; CPU before them {} s", seconds(cost.took), seconds(cost.cpu_before));
    println!("refreshes: {}, slowest {} ms", cost.refreshes.len(), milliseconds(slowest));
    for write in cost.writes.iter().take(10) {
        println!("written: {write}");
    }
    rows.iter().all(|row| row.3)
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
