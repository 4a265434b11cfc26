//! What sync and rollouts cost: short rounds of `make bench-sync` and `make bench-rollouts`. CPU and memory of a debug
//! build say nothing.

use std::time::Duration;

use kimup_testbed::{InFlight, RolloutLoad, SyncLoad};

use crate::support::binary;

#[tokio::test]
async fn images_of_a_repository_share_a_list_and_a_sync_that_changes_nothing_writes_nothing() {
    let load = SyncLoad { images: 20, repositories: 5, interval: Duration::from_secs(10), intervals: 2, refreshes: 3 };
    let cost = load.measure(binary()).await.unwrap();
    assert!(cost.syncs >= 40, "{cost:?}");
    // One list for four Images; a machine that stands still for as long as a list is shared needs another one.
    assert!(cost.lists * 4 >= cost.syncs && cost.lists * 3 <= cost.syncs, "{cost:?}");
    assert_eq!(cost.writes, Vec::<String>::new());
    assert_eq!(cost.refreshes.len(), 3);
}

#[tokio::test]
async fn a_rollout_takes_few_requests_and_keeps_to_every_limit() {
    let limits = InFlight { group: 3, namespace: 2, cluster: 5 };
    let load = RolloutLoad { namespaces: 3, deployments: 10, limits };
    for cost in load.measure(binary()).await.unwrap() {
        println!("{cost:?}");
        assert_eq!(cost.requests.get("patch deployments"), Some(&30), "each is stamped once: {cost:?}");
        // What an Image costs is shared by ten here, by 500 in the bench.
        assert!(cost.total() <= 30 * 6 + 3 * 15, "{} requests: {cost:?}", cost.total());
        let most = (cost.most.namespace, cost.most.cluster);
        assert!(most.0 <= 2 && most.1 <= 5 && most.1 >= 2, "{cost:?}");
    }
}
