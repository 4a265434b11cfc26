//! How much memory the choice of a tag takes beyond the list of tags. Apart from the times, which a counting allocator
//! would disturb. Ends with exit code 1 if the bar is missed.

mod tags;

use std::process::ExitCode;

use kimup::policy::{Filter, Rule, select};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Most that a choice may take, in percent of the tags' own bytes.
const BAR: usize = 25;

fn main() -> anyhow::Result<ExitCode> {
    let tags = tags::mixed();
    let own = tags::bytes(&tags);
    let builds = Filter::new(Some(r"^main-[0-9a-f]+-(?<time>\d+)$"), Some("$time"), &[])?;
    let plain = Filter::default();
    let cases = [
        ("semver range", Rule::parse("semver", Some(">=1.2.0, <5.0.0"))?, &plain, "1.4.2"),
        ("semver-minor", Rule::parse("semver-minor", None)?, &plain, "1.4.2"),
        ("regex with numeric extract", Rule::parse("numerical", None)?, &builds, "main-0000000-1600000000"),
        ("always", Rule::parse("always", None)?, &plain, "main"),
    ];
    println!("{} tags, {own} bytes; peak beyond them, in percent of them\n", tags.len());
    println!("{:38} {:>9} {:>9} {:>9}", "", "bytes", "percent", "bar");
    let mut met = true;
    for (name, rule, filter, current) in &cases {
        let peak = peak(|| select(rule, filter, Some(current), &tags).selected.is_some());
        let percent = (peak * 100).div_ceil(own);
        met &= percent <= BAR;
        println!("{name:38} {peak:9} {percent:9} {BAR:>9}{}", if percent <= BAR { "" } else { "  MISSED" });
    }
    let (_, rule, filter, current) = &cases[0];
    let decision = select(rule, filter, Some(current), &tags);
    let peak = peak(|| decision.explain());
    println!("{:38} {peak:9} {:9}", "a reason for each tag (explain)", (peak * 100).div_ceil(own));
    println!("\n{}", if met { "the bar is met" } else { "the bar is missed" });
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The most bytes that were allocated at once while it ran, beyond those before.
fn peak<T>(run: impl FnOnce() -> T) -> usize {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let answer = run();
    let peak = ALLOCATOR.peak_usage();
    drop(answer);
    peak - before
}
