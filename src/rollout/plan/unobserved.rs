//! A template whose controller has not caught up.

use super::*;
use crate::api::Image;
use crate::rollout::facts::{PodImages, Revision};
use serde_json::{Value, json};

fn deployment(observed: i64) -> Workload {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}},
        "status": {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
    });
    Workload::from_deployment(&serde_json::from_value(object).unwrap()).unwrap()
}

fn target() -> Target {
    let spec: Value = json!({"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
        "rules": [{"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]});
    let image: Image = serde_json::from_value(json!({"apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": "web"}, "spec": spec}))
    .unwrap();
    Target {
        image: "web".to_owned(),
        tag: "1.2.0".to_owned(),
        digest: None,
        settled: true,
        rule: "minor".to_owned(),
        rollout: "ab12".to_owned(),
        order: Order::of(&image.spec),
        left: None,
        held: None,
        rejected: BTreeSet::new(),
        why_rejected: String::new(),
    }
}

/// Undone to an unstamped revision; the `ReplicaSet`s still are those from before.
#[test]
fn an_undo_is_judged_once_the_controller_has_seen_it() {
    #[track_caller]
    fn check(observed: i64, facts: Option<&Facts>, blocked: Option<Blocked>) {
        let plan = plan(&deployment(observed), &BTreeMap::from([("app".to_owned(), target())]), facts);
        assert_eq!(plan, Plan { blocked, ..Plan::default() }, "{observed}");
    }
    let facts = Facts {
        revisions: vec![Revision { hash: "stamped".to_owned(), current: true, stamps: BTreeMap::new() }],
        pods: vec![PodImages {
            hash: "stamped".to_owned(),
            images: BTreeMap::from([("app".to_owned(), "app:1.2.0".to_owned())]),
        }],
    };
    check(2, Some(&facts), Some(Blocked::Unobserved));
    check(2, None, Some(Blocked::Unobserved));
    check(3, None, Some(Blocked::NeedsFacts));
    check(3, Some(&facts), None);
}
