//! Which Image counts for which container.

use super::*;
use crate::api::annotated::image_name;
use crate::api::{Group, Rejected};
use crate::rollout;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

const P: &str = "kimup.cloudavenue.io";

fn image(name: &str, patch: &Value) -> Arc<Image> {
    let mut object = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver", "actions": [{"type": "apply"}]}]},
    });
    json_patch::merge(&mut object, patch);
    Arc::new(serde_json::from_value(object).unwrap())
}

/// An Image that kimup made for a container of the Deployment `web`.
fn made(container: &str, uid: &str, repository: &str) -> Arc<Image> {
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid, "controller": true});
    let metadata = json!({"labels": {"app.kubernetes.io/managed-by": "kimup"}, "ownerReferences": [owner]});
    image(&image_name("Deployment", "web", container), &json!({"metadata": metadata, "spec": {"image": repository}}))
}

fn put(world: &World, image: &Arc<Image>) {
    let key = ImageKey { namespace: "shop".to_owned(), name: image.metadata.name.clone().unwrap() };
    world.put_image(&key, Cached::Read(image.clone()));
}

/// Containers `app` (of `app`) and `proxy` (of `proxy`).
fn workload(name: &str, annotations: &[(&str, &str)]) -> Workload {
    let map: serde_json::Map<String, Value> = annotations.iter().map(|(k, v)| (k.replace('~', P), json!(v))).collect();
    let object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7"},
        "spec": {"selector": {}, "template": {"metadata": {"annotations": map}, "spec": {"containers": [
            {"name": "app", "image": "app:1.0.0"}, {"name": "proxy", "image": "proxy:1.0.0"},
        ]}}},
    });
    Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap()
}

#[test]
fn the_own_image_counts_before_one_by_repository() {
    #[track_caller]
    fn check(annotations: &[(&str, &str)], images: &[Arc<Image>], expected: [Option<&str>; 2]) {
        let world = World::default();
        for image in images {
            put(&world, image);
        }
        let web = workload("web", annotations);
        world.put_workload(web.clone());
        let found = world.images_of(&web);
        let name = |container: &str| found.get(container).map(|image| image.metadata.name.clone().unwrap());
        assert_eq!([name("app"), name("proxy")], expected.map(|name| name.map(str::to_owned)), "{annotations:?}");
        for image in images {
            let covered: Vec<&String> = found.iter().filter(|(_, i)| i == &image).map(|(name, _)| name).collect();
            let users = world.users_of(image);
            assert_eq!(users.iter().flat_map(|user| &user.containers).collect::<Vec<_>>(), covered);
        }
    }
    let user = || image("user", &json!({}));
    let proxy = || image("proxy", &json!({"spec": {"image": "proxy"}}));
    let app = made("app", "u", "app");
    let own = app.metadata.name.as_deref().unwrap();
    let policy = &[("policy.~/app", "semver")][..];
    let on = &[("~/enabled", "true")][..];
    check(&[], &[user()], [None, None]);
    check(on, &[user(), proxy()], [Some("user"), Some("proxy")]);
    check(policy, &[user(), app.clone()], [Some(own), None]);
    // A person's Image beside it serves the containers that are opted in.
    check(&[on[0], policy[0]], &[user(), proxy(), app.clone()], [Some(own), Some("proxy")]);
    check(&[on[0], ("enabled.~/app", "false")], &[user(), proxy()], [None, Some("proxy")]);
    // Its own is not there yet, or still for another repository, or for an earlier workload of that name.
    check(policy, &[user()], [None, None]);
    check(policy, &[user(), made("app", "u", "old")], [None, None]);
    check(policy, &[user(), made("app", "earlier", "app")], [None, None]);
    // It is never found by its repository, nor without a policy.
    check(on, std::slice::from_ref(&app), [None, None]);
    check(on, &[app.clone(), user()], [Some("user"), None]);
    // A typo is no opting out.
    check(&[("policy.~/app", "semvre")], &[user(), app.clone()], [Some(own), None]);
    check(&[("policy.~/app", "semvre"), ("~/enabled", "false")], &[user(), app.clone()], [None, None]);
}

#[test]
fn groups_share_their_limit() {
    #[track_caller]
    fn check(patches: &[Value], same: bool, most: usize) {
        let world = World::default();
        let images: Vec<_> = patches.iter().enumerate().map(|(i, patch)| image(&format!("i{i}"), patch)).collect();
        for image in &images {
            put(&world, image);
        }
        assert_eq!(same_group(&images[0], &images[1]), same, "{patches:?}");
        assert_eq!(world.max_concurrent(&images[0]), most, "{patches:?}");
    }
    let most = |n: u32| json!({"spec": {"rollout": {"maxConcurrent": n}}});
    let with = |n: u32, key: &str, value: Value| json!({"spec": {"rollout": {"maxConcurrent": n}, key: value}});
    check(&[json!({}), json!({})], true, 1);
    check(&[most(3), json!({})], true, 1);
    check(&[most(3), most(2)], true, 2);
    check(&[most(2), most(3)], true, 2);
    check(&[most(3), with(2, "image", json!("docker.io/library/app"))], true, 2);
    check(&[most(3), with(2, "image", json!("other"))], false, 3);
    check(&[most(3), with(2, "filter", json!({"pattern": "x"}))], false, 3);
    check(&[most(3), with(2, "filter", json!({}))], true, 2);
    check(&[most(3), with(2, "baseTag", json!("1.0.0"))], true, 2);
    let rule =
        |kind: &str, value: &str| json!([{"name": "x", "type": kind, "value": value, "actions": [{"type": "apply"}]}]);
    check(&[most(3), with(2, "rules", rule("semver", "^1"))], false, 3);
    check(
        &[most(3), with(2, "rules", json!([{"name": "x", "type": "semver", "actions": [{"type": "apply"}]}]))],
        true,
        2,
    );
    // What nobody must approve says nothing of what somebody must.
    let actions = json!([{"type": "apply"}, {"type": "request-approval"}]);
    let asks = json!([{"name": "x", "type": "semver", "actions": actions}]);
    check(&[most(3), with(2, "rules", asks.clone())], false, 3);
    check(&[with(3, "rules", asks.clone()), with(2, "rules", asks)], true, 2);
}

#[test]
fn an_annotated_workload_is_a_source() {
    let world = World::default();
    let web = workload("web", &[("policy.~/app", "semver")]);
    let key = SourceKey::from(&web.key);
    world.put_workload(web.clone());
    assert!(world.is_annotated(&key));
    assert_eq!(world.source(&key).unwrap().wish.images.len(), 1);
    assert_eq!(world.source_keys(), std::slice::from_ref(&key));
    // Opted out: it is known, and asks for nothing.
    world.put_workload(Workload { resource_version: "8".to_owned(), ..workload("web", &[]) });
    assert!(!world.is_annotated(&key) && world.source_keys().is_empty());
    assert!(world.source(&key).unwrap().wish.images.is_empty());
    // What was made for it must be looked at.
    put(&world, &made("app", "u", "app"));
    assert_eq!(world.source_keys(), std::slice::from_ref(&key));
    assert_eq!(world.made_for(&key).len(), 1);
    let other = WorkloadKey { kind: rollout::Kind::StatefulSet, ..web.key.clone() };
    assert!(world.made_for(&SourceKey::from(&other)).is_empty());
    world.remove_workload(&web.key);
    assert!(world.source(&key).is_none());
}

#[test]
fn credentials_are_those_of_the_owner_itself() {
    #[track_caller]
    fn check(image: &Image, expected: Option<&str>) {
        let world = World::default();
        let mut web = workload("web", &[("policy.~/app", "semver")]);
        web.access.service_account = "robot".to_owned();
        world.put_workload(web);
        assert_eq!(world.access_of(image).map(|access| access.service_account).as_deref(), expected);
    }
    check(&made("app", "u", "app"), Some("robot"));
    // Made for an earlier Deployment of that name, or of somebody who names that owner; of a person.
    check(&made("app", "earlier", "app"), None);
    let mut unlabelled = made("app", "u", "app").as_ref().clone();
    unlabelled.metadata.labels = None;
    check(&unlabelled, None);
    check(&image("user", &json!({})), None);
}

/// A rule of a type with an action.
fn rules(kind: &str, action: &str) -> Value {
    json!({"spec": {"rules": [{"name": "r", "type": kind, "actions": [{"type": action}]}]}})
}

/// An Image with a status that names the group of its rules, as every written one does.
fn rejecting(name: &str, rules: &Value, tags: &[&str]) -> Arc<Image> {
    let of = |tag: &&str| json!({"tag": tag, "reason": "failed", "time": "2026-01-01T00:00:00Z"});
    let mut image = image(name, rules);
    let group = Group::of(&image.spec).id();
    let status = json!({"tag": "1.2.4", "group": group, "rejected": tags.iter().map(of).collect::<Vec<_>>()});
    Arc::make_mut(&mut image).status = Some(serde_json::from_value(status).unwrap());
    image
}

#[test]
fn what_an_image_brings_into_another_group_counts_for_nobody() {
    #[track_caller]
    fn check(before: &Value, after: &Value, known: bool, expected: bool) {
        let world = World::default();
        let (mut joins, member) = (rejecting("joins", before, &["1.2.5"]), rejecting("member", after, &[]));
        let mut joined = image("joins", after);
        Arc::make_mut(&mut joined).status = Arc::make_mut(&mut joins).status.take();
        if !known {
            Arc::make_mut(&mut joined).status.as_mut().unwrap().group = None; // of a kimup that did not write it
        }
        for image in [&joined, &member] {
            put(&world, image);
        }
        for image in [&joined, &member] {
            let tags = Rejected::tags(&world.rejections(image));
            assert_eq!(tags.contains("1.2.5"), expected, "{} {before} {after}", image.name_any());
        }
        assert_eq!(status_of(&joined).rejected.is_empty(), !expected);
        assert_eq!(status_of(&joined).tag.as_deref(), Some("1.2.4"), "the rest counts");
    }
    let (patch, minor) = (rules("semver-patch", "apply"), rules("semver-minor", "apply"));
    check(&minor, &minor, true, true);
    check(&patch, &minor, true, false);
    check(&patch, &minor, false, true);
    // Who may not reject for a group that asks for approval must not do so by joining it.
    check(&minor, &rules("semver-minor", "request-approval"), true, false);
}

#[test]
fn who_joins_neither_gives_nor_keeps() {
    use crate::sync::status;
    let world = World::default();
    let (patch, minor) = (rules("semver-patch", "apply"), rules("semver-minor", "apply"));
    let one = rejecting("one", &patch, &["1.2.5"]);
    let mut two = rejecting("two", &minor, &[]);
    let three = rejecting("three", &minor, &["1.3.0"]);
    // `two` was of the group of `one` when it learned this.
    let status = Arc::make_mut(&mut two).status.as_mut().unwrap();
    assert!(status::take_over(status, &world.rejections(&one)));
    status.group = Some(Group::of(&one.spec).id());
    for image in [&one, &two, &three] {
        put(&world, image);
    }
    let tags = |image: &Image| Rejected::tags(&world.rejections(image)).into_iter().collect::<Vec<_>>();
    assert_eq!(tags(&one), ["1.2.5"]);
    assert_eq!(tags(&two), ["1.3.0"]);
    assert_eq!(tags(&three), ["1.3.0"]);
    // The next status that it writes has what its new group has rejected, and no more.
    let mut next = status_of(&two);
    assert!(status::take_over(&mut next, &world.rejections(&two)));
    assert_eq!(Rejected::tags(&next.rejected), ["1.3.0".to_owned()].into());
}

#[test]
fn each_rejected_tag_of_a_group_once_the_oldest_first() {
    #[track_caller]
    fn check(members: &[&[&str]], expected: &[&str]) {
        let world = World::default();
        for (i, tags) in members.iter().enumerate() {
            let mut image = rejecting(&format!("i{i}"), &json!({}), tags);
            for rejected in &mut Arc::make_mut(&mut image).status.as_mut().unwrap().rejected {
                rejected.time = format!("2026-01-01T00:00:0{}Z", rejected.tag); // the tag is the second
            }
            put(&world, &image);
        }
        for i in 0..members.len() {
            let Some(Cached::Read(image)) =
                world.image(&ImageKey { namespace: "shop".to_owned(), name: format!("i{i}") })
            else {
                panic!("i{i} is known");
            };
            let tags: Vec<String> = world.rejections(&image).into_iter().map(|rejected| rejected.tag).collect();
            assert_eq!(tags, expected, "{members:?} {i}");
        }
    }
    check(&[&[], &[]], &[]);
    check(&[&["1", "2"], &["1", "2"]], &["1", "2"]);
    check(&[&["1", "3"], &["2", "3"], &[]], &["1", "2", "3"]);
    check(&[&["3"], &["1", "2", "3"]], &["1", "2", "3"]);
    check(&[&["2", "1"], &["1", "2"]], &["1", "2"]);
}
