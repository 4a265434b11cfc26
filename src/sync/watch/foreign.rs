//! Watches the workloads that other projects bring, while their kinds are installed: discovery tells, again and again, so
//! that nothing needs a restart when one is installed later or taken away.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use tokio::sync::watch::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::index::Pause;
use crate::rollout::{Kind, Workload};
use crate::sync::engine::Sync;
use crate::sync::world;

use super::{follow, scopes, workload_gone};

/// How often discovery is asked: one small request per kind.
const POLL: Duration = Duration::from_secs(10);
/// When it is asked again after a kind that was installed is missing: an API server that has just started, or has not
/// heard of the kind yet, misses it too.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// So many answers in a row must miss a kind before its workloads are forgotten.
const MISSES: u32 = 2;
/// So many refused requests and the start of sync waits for this kind no longer.
const REFUSALS: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(10);

/// The kinds that other projects bring.
const KINDS: [Kind; 2] = [Kind::Rollout, Kind::CloneSet];

/// The watches of these kinds that run, each for all namespaces or for one, and whether it has brought everything once.
#[derive(Default)]
pub(in crate::sync) struct Served(HashMap<(Kind, Option<String>), Receiver<bool>>);

impl Served {
    /// Whether a workload that is not known is not there either. `workload`: kind and name, for example `Rollout/web`. Of
    /// the kinds of other projects that is known only while they are served and were listed.
    pub fn tells(&self, namespace: &str, workload: &str) -> bool {
        let kind = workload.split_once('/').map(|(kind, _)| kind);
        let Some(kind) = Kind::ALL.into_iter().find(|known| Some(known.as_str()) == kind) else {
            return false; // of another version of kimup
        };
        let listed = |within: Option<&str>| {
            let watch = self.0.get(&(kind, within.map(str::to_owned)));
            watch.is_some_and(|listed| *listed.borrow())
        };
        !KINDS.contains(&kind) || listed(None) || listed(Some(namespace))
    }
}

/// What discovery says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Installed,
    Missing,
    /// The API server answers, but not that question.
    Refused,
    /// No answer.
    Unknown,
}

/// Starts to look for each kind. The receivers turn true when a kind is known to be missing, or its workloads are listed.
pub(super) fn start(sync: &Arc<Sync>, shutdown: &CancellationToken) -> Vec<Receiver<bool>> {
    let start = |kind| {
        let (listed, receiver) = tokio::sync::watch::channel(false);
        tokio::spawn(look(sync.clone(), shutdown.clone(), kind, listed));
        receiver
    };
    KINDS.map(start).into()
}

async fn look(sync: Arc<Sync>, shutdown: CancellationToken, kind: Kind, listed: Sender<bool>) {
    let mut followed = Followed { kind, running: HashMap::new(), told: HashSet::new() };
    let (mut misses, mut refusals, mut pause) = (0, 0, Pause::default());
    loop {
        let found = discover(&sync.client, kind).await;
        let mut wait = POLL;
        match found {
            Found::Installed => {
                (misses, refusals) = (0, 0);
                followed.start(&sync, &shutdown, &listed).await;
            }
            Found::Missing => {
                misses += 1;
                if followed.running.is_empty() || misses >= MISSES {
                    followed.stop(&sync).await;
                    listed.send_replace(true);
                } else {
                    wait = ASK_AGAIN;
                }
            }
            Found::Refused | Found::Unknown => {
                refusals += u32::from(found == Found::Refused);
                if refusals >= REFUSALS {
                    listed.send_replace(true);
                }
                if !*listed.borrow() {
                    wait = pause.next().unwrap_or(POLL);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Whether a kind is installed, as a version that kimup reads.
async fn discover(client: &kube::Client, kind: Kind) -> Found {
    let (_, _, resource) = kind.api();
    let answer = tokio::time::timeout(TIMEOUT, client.list_api_group_resources(kind.api_version())).await;
    match answer {
        Ok(Ok(list)) if list.resources.iter().any(|r| r.name == resource && r.kind == kind.as_str()) => {
            Found::Installed
        }
        Ok(Ok(_)) => Found::Missing,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Found::Missing,
        Ok(Err(kube::Error::Api(status))) => {
            tracing::warn!(kind = kind.as_str(), error = %status.message, "cannot find out whether the kind is installed; trying again");
            Found::Refused
        }
        Ok(Err(error)) => {
            tracing::warn!(kind = kind.as_str(), %error, "cannot find out whether the kind is installed; trying again");
            Found::Unknown
        }
        Err(_) => Found::Unknown,
    }
}

/// The watches of one kind, by namespace; none: all namespaces.
struct Followed {
    kind: Kind,
    running: HashMap<Option<String>, (CancellationToken, Receiver<bool>)>,
    /// Where kimup was found not to be allowed to, which is said once.
    told: HashSet<Option<String>>,
}

impl Followed {
    /// Starts the watches that are allowed and do not run yet.
    async fn start(&mut self, sync: &Arc<Sync>, shutdown: &CancellationToken, listed: &Sender<bool>) {
        let kind = self.kind;
        let began = self.running.len();
        for (within, api) in scopes(sync, |client, within| match within {
            Some(namespace) => Api::<DynamicObject>::namespaced_with(client, namespace, &kind.resource()),
            None => Api::all_with(client, &kind.resource()),
        }) {
            if self.running.contains_key(&within) || !self.is_allowed(&api, within.as_ref()).await {
                continue;
            }
            let token = shutdown.child_token();
            let saw = move |sync: &Sync, object: DynamicObject| saw(sync, kind, &object);
            let gone = move |sync: &Sync, namespace: &str, name: &str| workload_gone(sync, kind, namespace, name);
            let of = world::Kind::Workloads(kind);
            let first = follow(api, sync.clone(), token.clone(), of, within.clone(), saw, gone);
            sync.served().0.insert((kind, within.clone()), first.clone());
            self.running.insert(within, (token, first));
        }
        if self.running.len() > began {
            tracing::info!(
                kind = kind.as_str(),
                api = kind.api_version(),
                "the kind is installed: its objects are followed"
            );
        }
        if !*listed.borrow() {
            let first: Vec<_> = self.running.values().map(|(_, first)| first.clone()).collect();
            let listed = listed.clone();
            tokio::spawn(async move {
                for mut watch in first {
                    let _ = watch.wait_for(|listed| *listed).await;
                }
                listed.send_replace(true);
            });
        }
    }

    /// Whether kimup may list the kind. What else may be wrong is the watch's to find out.
    async fn is_allowed(&mut self, api: &Api<DynamicObject>, within: Option<&String>) -> bool {
        let answer = tokio::time::timeout(TIMEOUT, api.list_metadata(&ListParams::default().limit(1))).await;
        let within = within.cloned();
        let Ok(Err(kube::Error::Api(status))) = answer else {
            return true;
        };
        if status.code != 403 {
            return true;
        }
        if self.told.insert(within.clone()) {
            let (group, _, resource) = self.kind.api();
            tracing::warn!(
                kind = self.kind.as_str(),
                namespace = within.unwrap_or_default(),
                error = %status.message,
                "the kind is installed, but kimup may not list it, so its objects are not followed: give it list, watch \
                 and patch on {resource}.{group}, as deploy/rbac.yaml does"
            );
        }
        false
    }

    /// Ends the watches and forgets what they brought.
    async fn stop(&mut self, sync: &Sync) {
        let kind = self.kind;
        self.told.clear();
        if self.running.is_empty() {
            return;
        }
        // First: that its objects are forgotten says nothing of them.
        sync.served().0.retain(|(of, _), _| *of != kind);
        for (_, (token, mut watch)) in self.running.drain() {
            token.cancel();
            // Not before it has ended: it may be bringing an object this moment.
            while watch.changed().await.is_ok() {}
        }
        for (namespace, name) in sync.world.unseen(world::Kind::Workloads(kind), None, &HashSet::new()) {
            workload_gone(sync, kind, &namespace, &name);
        }
        tracing::info!(kind = kind.as_str(), "the kind is not installed any more: its objects are forgotten");
    }
}

fn saw(sync: &Sync, kind: Kind, object: &DynamicObject) {
    if let Some(workload) = Workload::from_foreign(kind, object) {
        sync.saw_workload(workload);
        return;
    }
    // What has no template now may have had one before.
    let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
    let (namespace, name) = (namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default());
    tracing::debug!(kind = kind.as_str(), namespace, name, "no Pod template: not followed");
    workload_gone(sync, kind, namespace, name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_may_be_there_while_its_kind_is_not_served() {
        let watch = |listed: bool| tokio::sync::watch::channel(listed).1;
        let shop = Some("shop".to_owned());
        let none = Served::default();
        let everywhere = Served([((Kind::Rollout, None), watch(true))].into());
        let shop_alone = Served([((Kind::Rollout, shop.clone()), watch(true))].into());
        let begins = Served([((Kind::Rollout, None), watch(false))].into());
        let check = |served: &Served, namespace: &str, workload: &str, expected: bool| {
            assert_eq!(served.tells(namespace, workload), expected, "{namespace} {workload}");
        };
        for served in [&none, &everywhere, &begins] {
            check(served, "shop", "Deployment/web", true);
            check(served, "shop", "StatefulSet/web", true);
            check(served, "shop", "DaemonSet/web", true);
            check(served, "shop", "CloneSet/web", false);
            check(served, "shop", "Sandbox/web", false);
            check(served, "shop", "web", false);
        }
        check(&none, "shop", "Rollout/web", false);
        check(&begins, "shop", "Rollout/web", false);
        check(&everywhere, "shop", "Rollout/web", true);
        check(&shop_alone, "shop", "Rollout/web", true);
        check(&shop_alone, "other", "Rollout/web", false);
    }
}
