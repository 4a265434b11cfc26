//! What sync costs: a short round of `make bench-sync`. CPU and memory of a debug build say nothing.

use std::time::Duration;

use kimup_testbed::SyncLoad;

use crate::support::binary;

#[tokio::test]
async fn images_of_a_repository_share_a_list_and_a_sync_that_changes_nothing_writes_nothing() {
    let load = SyncLoad { images: 20, repositories: 5, interval: Duration::from_secs(10), intervals: 2, refreshes: 3 };
    let cost = load.measure(binary()).await.unwrap();
    assert!(cost.syncs >= 40, "{cost:?}");
    assert_eq!(cost.lists * 4, cost.syncs, "{cost:?}");
    assert_eq!(cost.writes, Vec::<String>::new());
    assert_eq!(cost.refreshes.len(), 3);
}
