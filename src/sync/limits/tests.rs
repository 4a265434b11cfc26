//! Random rollouts against the limits: whoever waits for a place is looked at as soon as there is one, and not before.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use serde_json::json;

use super::*;
use crate::rollout::Change;
use crate::sync::testing;

/// Rollouts of the cluster and of one namespace at a time.
const LIMITS: [usize; 2] = [3, 2];
/// Half a second after a whole one, the only ones in which something ends.
const START: i64 = 1_800_000_000;

/// What may happen; a second passes after each.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A newer tag for one of the workloads.
    Newer(usize),
    /// The Pods of one are ready.
    Ends(usize),
    /// Somebody gives the rollouts of a namespace less time.
    Shorter(usize),
    /// Nothing.
    Passes,
}

struct Model {
    sync: Sync,
    /// What has a newer tag and is not stamped with it, in the order of the model's workloads.
    wants: BTreeSet<WorkloadKey>,
    second: i64,
    looks: usize,
    version: usize,
}

/// `one-3` is the fourth workload, of an Image in the namespace `one`.
fn key(number: usize) -> WorkloadKey {
    let namespace = ["one", "two"][number % 2].to_owned();
    WorkloadKey { kind: rollout::Kind::Deployment, name: format!("{namespace}-{number}"), namespace }
}

/// Of each namespace's Images there is one that allows two at a time, and one with a short deadline.
fn repository(number: usize) -> &'static str {
    ["calm", "hasty"][number / 2 % 2]
}

impl Model {
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        let sync = testing::sync(kube::Client::new(nobody, "default"), LIMITS);
        let mut model = Self { sync, wants: BTreeSet::new(), second: START, looks: 0, version: 0 };
        model.now_is(START);
        for namespace in ["one", "two"] {
            model.put_image(namespace, "calm", &json!({"maxConcurrent": 2, "deadline": "7s"}));
            model.put_image(namespace, "hasty", &json!({"maxConcurrent": 100, "deadline": "2s"}));
        }
        model
    }

    fn put_image(&mut self, namespace: &str, repository: &str, rollout: &serde_json::Value) {
        self.version += 1;
        let object = json!({
            "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
            "metadata": {"name": repository, "namespace": namespace, "uid": repository, "resourceVersion": self.version.to_string()},
            "spec": {"image": repository, "triggers": [{"type": "webhook"}], "rollout": rollout,
                "rules": [{"name": "r", "type": "semver", "actions": [{"type": "apply"}]}]},
            "status": {"tag": "2.0.0"},
        });
        let key = ImageKey { namespace: namespace.to_owned(), name: repository.to_owned() };
        self.sync.world.put_image(&key, Cached::Read(Arc::new(serde_json::from_value(object).unwrap())));
    }

    /// The workload as it is from now on: stamped a moment ago, or with all its Pods ready.
    fn put(&mut self, number: usize, stamped: bool, complete: bool) {
        self.version += 1;
        let (key, repository) = (key(number), repository(number));
        let stamp = "stamp.kimup.cloudavenue.io/app";
        let mut annotations = json!({"kimup.cloudavenue.io/enabled": "true"});
        let mut fields = json!({});
        if stamped {
            annotations[stamp] = json!(format!("{repository}:1.0.0 {repository}:2.0.0"));
            fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {format!("f:{stamp}"): {}}}}}});
        }
        let at = Timestamp::from_second(self.second).unwrap();
        let known = self.sync.world.workload(&key).and_then(|workload| workload.stamped_at);
        let object = json!({
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": key.name, "generation": 1,
                "resourceVersion": self.version.to_string(),
                "managedFields": [{"manager": FIELD_MANAGER, "fieldsV1": fields, "operation": "Apply", "apiVersion": "apps/v1",
                    "time": known.unwrap_or(at).to_string()}]},
            "spec": {"replicas": 1, "selector": {}, "template": {"metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": format!("{repository}:1.0.0")}]}}},
            "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": i32::from(complete)},
        });
        let workload = Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap();
        assert_eq!(workload.complete, complete);
        self.sync.world.put_workload(workload);
    }

    fn now_is(&mut self, second: i64) {
        self.second = second;
        let at = Timestamp::from_millisecond(second * 1000 + 500).unwrap();
        self.sync.options.clock.set(at.duration_since(Timestamp::now()));
    }

    fn plan(workload: &Workload) -> Plan {
        let repository = workload.containers[0].text.trim_end_matches(":1.0.0").to_owned();
        let stamp = format!("{repository}:1.0.0 {repository}:2.0.0");
        let change = Change { container: "app".to_owned(), image: repository, ..Change::default() };
        Plan { changes: vec![change], stamps: [("app".to_owned(), stamp)].into(), ..Plan::default() }
    }

    /// What `reconcile_workload` and `roll` do.
    fn look(&mut self, key: &WorkloadKey) {
        self.looks += 1;
        let (sync, workload) = (&self.sync, self.sync.world.workload(key).unwrap());
        let offered = sync.take_offer(key);
        if self.wants.contains(key) && !sync.startable(&workload, &Self::plan(&workload)).changes.is_empty() {
            sync.waiting().remove(key);
            self.wants.remove(key);
            let number = key.name.split_once('-').unwrap().1.parse().unwrap();
            self.put(number, true, false);
            self.sync.queue.add_now(Key::Workload(key.clone()));
        }
        self.sync.await_deadline_of(&workload);
        if offered {
            self.sync.pass_on(key);
        }
    }

    /// Does what is due.
    async fn run(&mut self) {
        while let Ok(due) = tokio::time::timeout(Duration::ZERO, self.sync.queue.next()).await {
            match &due {
                Key::Workload(key) => self.look(key),
                Key::Places => self.sync.free_places(),
                _ => {}
            }
            self.sync.queue.done(&due);
        }
    }

    /// A change of an Image has every workload of its namespace looked at.
    fn shorten(&mut self, namespace: &str) {
        self.put_image(namespace, "calm", &json!({"maxConcurrent": 2, "deadline": "3s"}));
        for workload in self.sync.world.workloads(Some(namespace)) {
            self.sync.queue.add_now(Key::Workload(workload.key.clone()));
        }
    }

    fn newer(&mut self, number: usize) {
        self.put(number, false, true);
        self.wants.insert(key(number));
        self.sync.queue.add_now(Key::Workload(key(number)));
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Newer(number) if self.sync.world.workload(&key(number)).is_none() => self.newer(number),
            Step::Ends(number) if self.in_flight(&key(number)) => {
                self.put(number, true, true);
                self.sync.queue.add_now(Key::Workload(key(number)));
                self.sync.free_places(); // as whoever notes it does
            }
            Step::Shorter(namespace) => self.shorten(["one", "two"][namespace]),
            _ => {}
        }
        self.run().await;
        self.nobody_waits_beside_a_place();
        tokio::time::advance(Duration::from_secs(1)).await;
        self.now_is(self.second + 1);
        self.run().await;
        self.nobody_waits_beside_a_place();
    }

    fn in_flight(&self, key: &WorkloadKey) -> bool {
        let workload = self.sync.world.workload(key);
        workload.is_some_and(|workload| is_in_flight(&self.sync.views(), &workload))
    }

    fn nobody_waits_beside_a_place(&self) {
        for key in &self.wants {
            let workload = self.sync.world.workload(key).unwrap();
            let names = Self::plan(&workload).changes.into_iter().map(|change| change.image).collect();
            let (images, moving) = (self.sync.read(&key.namespace, &names), self.sync.moving());
            let room = has_room(&self.sync, &moving, key, &images);
            assert!(!room, "{key} waits beside a place, {} s after the start", self.second - START);
        }
        let counted = self.sync.moving().into_iter().filter(|moving| !moving.overdue).count();
        assert!(counted <= LIMITS[0]);
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_free_place_is_taken_at_once(steps in proptest::collection::vec(prop_oneof![
        3 => (0_usize..12).prop_map(Step::Newer),
        2 => (0_usize..12).prop_map(Step::Ends),
        1 => (0_usize..2).prop_map(Step::Shorter),
        2 => Just(Step::Passes),
    ], 1..40)) {
        paused().block_on(async {
            let mut model = Model::new();
            for step in steps {
                model.step(step).await;
            }
        });
    }
}

/// However many wait: where one place comes free, one of them is looked at, and once more when its own rollout has begun.
#[test]
fn a_deadline_wakes_as_many_as_find_room() {
    paused().block_on(async {
        let mut model = Model::new();
        for number in (0..80).filter(|number| repository(*number) == "hasty") {
            model.newer(number);
        }
        model.run().await;
        let (wanted, looks) = (model.wants.len(), model.looks);
        assert!(wanted > 10, "{wanted} wait");
        for _ in 0..4 {
            model.step(Step::Passes).await;
        }
        let started = wanted - model.wants.len();
        assert!(started > 0);
        assert!(model.looks - looks <= 3 * started, "{} looks for {started}", model.looks - looks);
    });
}

/// As long as the limits of the cluster are full, those of one namespace wait for the rollouts of another.
#[test]
fn a_deadline_that_somebody_shortens_counts_at_once() {
    paused().block_on(async {
        let mut model = Model::new();
        for number in [0, 4, 1, 5] {
            model.step(Step::Newer(number)).await;
        }
        assert_eq!(model.wants, [key(5)].into());
        model.step(Step::Shorter(0)).await;
        assert_eq!(model.wants, [].into());
    });
}

/// Its own rollout, which the repair goes on with, takes no place from it.
#[test]
fn who_waits_with_a_repair_is_offered_its_place() {
    paused().block_on(async {
        let mut model = Model::new();
        model.step(Step::Newer(0)).await;
        model.step(Step::Newer(4)).await;
        assert_eq!(model.wants, [].into());
        model.put_image("one", "calm", &json!({"maxConcurrent": 1, "deadline": "600s"}));
        // Its Pods came without the stamp: the same stamp once more.
        model.wants.insert(key(0));
        model.sync.queue.add_now(Key::Workload(key(0)));
        model.run().await;
        assert_eq!(model.wants, [key(0)].into());
        model.step(Step::Ends(4)).await;
        assert_eq!(model.wants, [].into());
    });
}
