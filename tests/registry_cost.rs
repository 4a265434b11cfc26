//! What Images cost their registries: a short run of `make bench-registry`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../benches/registry/simulation.rs"]
mod simulation;

use std::time::Duration;

use simulation::Plan;

#[tokio::test(start_paused = true)]
async fn images_of_one_repository_cost_as_much_as_one() {
    let interval = Duration::from_mins(5);
    let plan = Plan { images: 50, repositories: 20, hosts: 2, interval, intervals: 5, shared: true };
    let count = plan.run().await;
    assert_eq!(count.failed, 0);
    assert!(count.syncs >= 50 * 4, "{count:?}");
    // The first sync is asked for a login, once per repository; from the second on it is one request each.
    assert_eq!(count.refused, 20);
    let listings = count.lists - count.refused;
    assert!(listings * 50 <= count.syncs * 20 + 50, "{listings} listings for {} syncs", count.syncs);
    assert!(plan.per_interval(&count) <= 1.5, "{count:?}");
    assert_eq!(count.tokens, count.lifetimes);
    assert!(count.busiest <= 3, "{} requests in one second, for 20 repositories in 300 s", count.busiest);

    let naive = Plan { shared: false, ..plan };
    assert!(naive.per_interval(&naive.run().await) >= 2.4);
}
