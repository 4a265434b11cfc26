use super::*;
use crate::index::testing::image;
use crate::policy::Repository;
use serde_json::{Value, json};

mod readers;

fn namespace(name: &str, labels: &Value, annotations: &Value) -> PartialObjectMeta<Namespace> {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}})).unwrap()
}

fn good(namespace: &str, name: &str, tag: &str) -> Listed {
    let image = image(&json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{name}-uid")},
        "spec": {"image": format!("ghcr.io/org/{name}")},
        "status": {"tag": tag, "repository": null},
    }));
    serde_json::from_str(&serde_json::to_string(&image).unwrap()).unwrap()
}

fn broken(namespace: &str, name: &str, uid: &str) -> Listed {
    let image = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"namespace": namespace, "name": name, "uid": uid}, "spec": {"image": 7},
    });
    serde_json::from_str(&image.to_string()).unwrap()
}

fn take(collector: &mut Collector, scope: Option<&str>, event: Event<Listed>) -> bool {
    collector.take(Change::Image(scope.map(str::to_owned), Box::new(event)), Timestamp::UNIX_EPOCH)
}

/// `namespace/name=tag` of every Image that counts.
fn known(collector: &Collector) -> Vec<String> {
    let mut found = Vec::new();
    for namespace in ["a", "b", "shop"] {
        for name in ["x", "y", "z"] {
            let repository = Repository::parse(&format!("ghcr.io/org/{name}")).unwrap();
            if let Some(entry) = collector.snapshot.image(namespace, &repository) {
                found.push(format!("{namespace}/{name}={}", entry.tag().unwrap()));
            }
        }
    }
    found
}

fn list(collector: &mut Collector, scope: Option<&str>, images: &[Listed]) {
    assert!(!take(collector, scope, Event::Init));
    for image in images {
        assert!(!take(collector, scope, Event::InitApply(image.clone())));
    }
    assert!(take(collector, scope, Event::InitDone));
}

#[test]
fn a_new_list_replaces_the_old_one_when_it_is_complete() {
    let mut collector = Collector::new(&Scope::All);
    list(&mut collector, None, &[good("a", "x", "1"), good("b", "y", "1")]);
    assert_eq!(known(&collector), ["a/x=1", "b/y=1"]);
    take(&mut collector, None, Event::Init);
    take(&mut collector, None, Event::InitApply(good("a", "x", "2")));
    assert_eq!(known(&collector), ["a/x=1", "b/y=1"]);
    // It failed half-way and begins anew.
    let failed = Change::Failed(Source::Images(None), "gone".to_owned());
    assert!(!collector.take(failed, Timestamp::UNIX_EPOCH));
    assert_eq!(known(&collector), ["a/x=1", "b/y=1"]);
    list(&mut collector, None, &[good("a", "z", "3")]);
    assert_eq!(known(&collector), ["a/z=3"]);
    list(&mut collector, None, &[]);
    assert_eq!(known(&collector), [""; 0]);
}

#[test]
fn changes_are_taken_in_one_by_one() {
    let mut collector = Collector::new(&Scope::All);
    list(&mut collector, None, &[good("a", "x", "1")]);
    let before = collector.snapshot.clone();
    assert!(take(&mut collector, None, Event::Apply(good("a", "x", "2"))));
    assert!(take(&mut collector, None, Event::Apply(good("b", "x", "1"))));
    assert_eq!(known(&collector), ["a/x=2", "b/x=1"]);
    assert!(take(&mut collector, None, Event::Delete(good("a", "x", "2"))));
    assert_eq!(known(&collector), ["b/x=1"]);
    // What was published does not change.
    let x = Repository::parse("ghcr.io/org/x").unwrap();
    assert_eq!(before.image("a", &x).unwrap().tag(), Some("1"));
    assert!(before.image("b", &x).is_none());
}

#[test]
fn an_image_that_cannot_be_read_disturbs_nobody_and_keeps_its_last_state() {
    let mut collector = Collector::new(&Scope::All);
    let listed = [good("a", "x", "1"), broken("a", "y", "y-uid"), good("a", "z", "1")];
    list(&mut collector, None, &listed);
    assert_eq!(known(&collector), ["a/x=1", "a/z=1"]);
    take(&mut collector, None, Event::Apply(broken("a", "x", "x-uid")));
    assert_eq!(known(&collector), ["a/x=1", "a/z=1"]);
    list(&mut collector, None, &[broken("a", "x", "x-uid"), good("a", "z", "2")]);
    assert_eq!(known(&collector), ["a/x=1", "a/z=2"]);
    // Another object of the same name: nothing is known of it.
    take(&mut collector, None, Event::Apply(broken("a", "x", "new-uid")));
    assert_eq!(known(&collector), ["a/z=2"]);
    take(&mut collector, None, Event::Apply(good("a", "x", "3")));
    assert_eq!(known(&collector), ["a/x=3", "a/z=2"]);
    list(&mut collector, None, &[broken("a", "x", "newer-uid")]);
    assert_eq!(known(&collector), [""; 0]);
    take(&mut collector, None, Event::Delete(broken("a", "x", "newer-uid")));
    assert!(collector.broken.is_empty());
}

#[test]
fn each_namespace_has_a_list_of_its_own_where_not_all_may_be_seen() {
    let mut collector = Collector::new(&Scope::Namespaces(vec!["a".to_owned(), "b".to_owned()]));
    list(&mut collector, Some("a"), &[good("a", "x", "1")]);
    list(&mut collector, Some("b"), &[good("b", "x", "1")]);
    list(&mut collector, Some("a"), &[]);
    assert_eq!(known(&collector), ["b/x=1"]);
    assert!(!collector.is_complete());
    let shop: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"kimup.cloudavenue.io/enabled": "true"}}}))
            .unwrap();
    let read = Change::Polled("a".to_owned(), Some(Box::new(shop)));
    assert!(collector.take(read, Timestamp::UNIX_EPOCH));
    assert!(collector.snapshot.namespace("a").unwrap().settings().unwrap().enabled);
    assert!(!collector.is_complete());
    // No such Namespace is an answer too.
    collector.take(Change::Polled("b".to_owned(), None), Timestamp::UNIX_EPOCH);
    assert!(collector.is_complete());
    collector.take(Change::Polled("a".to_owned(), None), Timestamp::UNIX_EPOCH);
    assert!(collector.snapshot.namespace("a").is_none());
}

#[test]
fn namespaces_say_who_is_opted_in() {
    let mut collector = Collector::new(&Scope::All);
    let on = json!({"kimup.cloudavenue.io/enabled": "true"});
    let off = json!({"kimup.cloudavenue.io/enabled": "false"});
    let none = json!({});
    let mut event = |event| {
        collector.take(Change::Namespace(Box::new(event)), Timestamp::UNIX_EPOCH);
        let annotated: Vec<String> = collector.snapshot.annotated().iter().cloned().collect();
        (annotated, collector.is_complete())
    };
    event(Event::Init);
    event(Event::InitApply(namespace("b", &none, &on)));
    event(Event::InitApply(namespace("a", &none, &on)));
    let (annotated, _) = event(Event::InitApply(namespace("labelled", &on, &on)));
    assert_eq!(annotated, [""; 0]);
    let (annotated, complete) = event(Event::InitDone);
    assert_eq!(annotated, ["a", "b"]);
    assert!(!complete, "Images are not listed yet");
    assert_eq!(event(Event::Apply(namespace("c", &none, &on))).0, ["a", "b", "c"]);
    assert_eq!(event(Event::Apply(namespace("a", &off, &on))).0, ["b", "c"]);
    assert_eq!(event(Event::Delete(namespace("b", &none, &on))).0, ["c"]);
    // A new list is under way, and fails half-way: what is known stays.
    assert_eq!(event(Event::Init).0, ["c"]);
    assert_eq!(event(Event::InitApply(namespace("d", &none, &on))).0, ["c"]);
    assert_eq!(event(Event::Init).0, ["c"]);
    assert_eq!(event(Event::InitDone).0, [""; 0]);
    list(&mut collector, None, &[]);
    assert!(collector.is_complete());
}

#[test]
fn a_namespace_that_goes_leaves_its_images_to_their_own_watch() {
    let mut collector = Collector::new(&Scope::All);
    let none = json!({});
    list(&mut collector, None, &[good("a", "x", "1")]);
    let mut event = |event| collector.take(Change::Namespace(Box::new(event)), Timestamp::UNIX_EPOCH);
    event(Event::Apply(namespace("a", &none, &none)));
    event(Event::Delete(namespace("a", &none, &none)));
    assert_eq!(known(&collector), ["a/x=1"]);
    take(&mut collector, None, Event::Delete(good("a", "x", "1")));
    assert!(collector.snapshot.namespace("a").is_none());
}

#[tokio::test]
async fn the_index_is_ready_after_both_lists_and_stays_so() {
    let (sender, receiver) = futures::channel::mpsc::unbounded();
    let index = Arc::new(Index::empty(Metrics::new(), Vec::new()));
    let mut changes = SelectAll::new();
    changes.push(receiver.boxed());
    let shutdown = CancellationToken::new();
    let collector = Collector::new(&Scope::All);
    let task = tokio::spawn(run(Arc::clone(&index), changes, collector, shutdown.clone()));
    let send = async |change| {
        sender.unbounded_send(change).unwrap();
        // On one thread: the other task runs until it waits again.
        tokio::task::yield_now().await;
        index.is_ready()
    };
    let on = json!({"kimup.cloudavenue.io/enabled": "true"});
    let mut annotated = index.annotated();
    assert!(!send(Change::Image(None, Box::new(Event::Init))).await);
    assert!(!send(Change::Image(None, Box::new(Event::InitDone))).await);
    assert!(!send(Change::Namespace(Box::new(Event::Init))).await);
    let opted_in = Event::InitApply(namespace("a", &json!({}), &on));
    assert!(!send(Change::Namespace(Box::new(opted_in))).await);
    assert!(send(Change::Namespace(Box::new(Event::InitDone))).await);
    assert!(annotated.has_changed().unwrap());
    assert_eq!(**annotated.borrow_and_update(), ["a"]);
    assert!(send(Change::Failed(Source::Namespaces, "gone".to_owned())).await);
    assert!(send(Change::Image(None, Box::new(Event::Apply(good("a", "x", "1"))))).await);
    assert!(!annotated.has_changed().unwrap(), "the list is the same");
    assert_eq!(index.snapshot().images(), 1);
    shutdown.cancel();
    task.await.unwrap();
}
