use super::*;
use crate::admission::configuration::{Owner, Target};
use crate::index::testing::snapshot;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Mutex;
use tokio::sync::mpsc;

fn options() -> Options {
    Options {
        name: "kimup".to_owned(),
        namespace: "kimup-system".to_owned(),
        target: Target::Url("https://192.0.2.7:8443".to_owned()),
        owner: Some(Owner {
            name: "kimup-system".to_owned(),
            uid: "u".to_owned(),
        }),
    }
}

/// An API server that holds one configuration.
#[derive(Clone)]
struct Server {
    object: Arc<Mutex<Option<Value>>>,
    writes: mpsc::UnboundedSender<String>,
}

impl Server {
    fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (writes, receiver) = mpsc::unbounded_channel();
        let object = Arc::default();
        (Self { object, writes }, receiver)
    }

    fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (method, query) = (
            request.method().clone(),
            request.uri().query().map(str::to_owned),
        );
        let kind = request
            .headers()
            .get("content-type")
            .map(|v| v.to_str().unwrap().to_owned());
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let mut object = self.object.lock().unwrap();
        let merge = kind.as_deref() == Some("application/merge-patch+json");
        match method {
            Method::GET => {}
            Method::DELETE => drop(self.writes.send("delete".to_owned())),
            _ => {
                let query = query.unwrap();
                assert!(query.contains("fieldManager=kimup-webhook"), "{query}");
                assert_eq!(query.contains("force=true"), !merge, "{query}");
                let version = |v: &Value| v["metadata"]["resourceVersion"].clone();
                assert_eq!(object.as_ref().map_or(Value::Null, version), version(&body));
                self.writes
                    .send(if merge { "merge" } else { "apply" }.to_owned())
                    .unwrap();
            }
        }
        let held = object
            .as_ref()
            .and_then(|object| object["webhooks"].as_array());
        let clash = held.is_some_and(|list| {
            list.iter()
                .any(|e| e["clientConfig"]["service"].is_object())
        });
        if method == Method::PATCH && !merge && clash {
            return status(422, "Invalid");
        }
        if method == Method::PATCH && merge {
            json_patch::merge(object.as_mut().unwrap(), &body);
        } else if method == Method::PATCH {
            *object = Some(apply(object.as_ref(), body));
        }
        let found = if method == Method::DELETE {
            object.take()
        } else {
            object.clone()
        };
        match found {
            Some(object) => respond(200, &object),
            None => status(404, "NotFound"),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        change(self.object.lock().unwrap().as_mut().unwrap());
    }
}

fn respond(status: u16, object: &Value) -> Response<Body> {
    let body = serde_json::to_vec(object).unwrap();
    Response::builder()
        .status(status)
        .body(Body::from(body))
        .unwrap()
}

fn status(code: u16, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason});
    respond(code, &status)
}

/// What server-side apply does, as far as it matters: conditions and entries that others added stay.
fn apply(old: Option<&Value>, mut new: Value) -> Value {
    new["metadata"]["resourceVersion"] = json!("1");
    for entry in old
        .iter()
        .flat_map(|old| old["webhooks"].as_array().unwrap())
    {
        let list = new["webhooks"].as_array_mut().unwrap();
        let Some(ours) = list.iter_mut().find(|e| e["name"] == entry["name"]) else {
            list.push(entry.clone());
            continue;
        };
        for condition in entry["matchConditions"].as_array().unwrap() {
            let conditions = ours["matchConditions"].as_array_mut().unwrap();
            if !conditions.iter().any(|c| c["name"] == condition["name"]) {
                conditions.push(condition.clone());
            }
        }
    }
    new
}

struct Running {
    server: Server,
    writes: mpsc::UnboundedReceiver<String>,
    leader: watch::Sender<bool>,
    ca: watch::Sender<Vec<u8>>,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(leads: bool) -> Self {
        let (server, writes) = Server::new();
        let (leader, leading) = watch::channel(leads);
        let (ca, bundle) = watch::channel(b"PEM".to_vec());
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let keeping = keep(
            server.client(),
            options(),
            Index::fixed(snapshot(&[])),
            leading,
            CaBundle::Ours(bundle),
            metrics.clone(),
            shutdown.clone(),
        );
        let task = tokio::spawn(keeping);
        Self {
            server,
            writes,
            leader,
            ca,
            metrics,
            shutdown,
            task,
        }
    }

    /// What is written within a minute, in order, until nothing more comes.
    async fn written(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        while let Ok(Some(write)) =
            tokio::time::timeout(Duration::from_secs(60), self.writes.recv()).await
        {
            found.push(write);
            assert!(found.len() < 10, "it writes without end: {found:?}");
        }
        found
    }

    fn entry(&self, at: usize) -> Value {
        self.server.object.lock().unwrap().as_ref().unwrap()["webhooks"][at].clone()
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_written_once_and_repaired() {
    let mut running = Running::start(true);
    assert_eq!(running.written().await, ["apply"]);
    let right = running.entry(0);
    let broken: [fn(&mut Value); 6] = [
        |object| object["webhooks"][0]["failurePolicy"] = json!("Ignore"),
        |object| object["webhooks"][0]["clientConfig"]["caBundle"] = json!("eA=="),
        |object| object["webhooks"][0]["objectSelector"] = json!({"matchLabels": {"a": "b"}}),
        |object| object["metadata"]["labels"] = json!({}),
        |object| object["metadata"]["ownerReferences"] = json!([]),
        |object| drop(object["webhooks"].as_array_mut().unwrap().remove(0)),
    ];
    for change in broken {
        running.server.change(change);
        assert_eq!(running.written().await, ["apply"]);
        assert_eq!(running.entry(0), right);
    }
    *running.server.object.lock().unwrap() = None;
    assert_eq!(running.written().await, ["apply"]);
    assert!(
        running
            .metrics
            .encode()
            .contains("kind=\"MutatingWebhookConfiguration\"} 8")
    );
    running.shutdown.cancel();
    running.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_apply_leaves_is_overwritten_and_what_is_not_kimups_stays() {
    let mut running = Running::start(true);
    assert_eq!(running.written().await, ["apply"]);
    let right = running.entry(0);
    running.server.change(|object| {
        let foreign = json!({"name": "x.example.com", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"], "matchConditions": []});
        object["webhooks"].as_array_mut().unwrap().push(foreign);
    });
    assert_eq!(running.written().await, [""; 0]);
    running.server.change(|object| {
        let conditions = object["webhooks"][0]["matchConditions"]
            .as_array_mut()
            .unwrap();
        conditions.push(json!({"name": "never", "expression": "false"}));
    });
    assert_eq!(running.written().await, ["apply", "merge"]);
    assert_eq!(running.entry(0), right);
    assert_eq!(running.entry(8)["name"], "x.example.com");
    running.server.change(|object| {
        let mut old = object["webhooks"][0].clone();
        old["name"] = json!("left-over.kimup.cloudavenue.io");
        object["webhooks"].as_array_mut().unwrap().push(old);
    });
    assert_eq!(running.written().await, ["apply", "merge"]);
    assert_eq!(running.entry(8)["name"], "x.example.com");
    assert_eq!(running.entry(9), Value::Null);
    // Beside our URL a Service is refused, whoever owns it.
    running.server.change(|object| {
        let config = json!({"service": {"namespace": "x", "name": "y"}});
        object["webhooks"][0]["clientConfig"] = config;
    });
    assert_eq!(running.written().await, ["apply", "merge"]);
    assert_eq!(running.entry(0), right);
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_writes_and_only_with_a_certificate() {
    let mut running = Running::start(false);
    assert_eq!(running.written().await, [""; 0]);
    running.ca.send_replace(Vec::new());
    running.leader.send_replace(true);
    assert_eq!(running.written().await, [""; 0]);
    let start = tokio::time::Instant::now();
    running.ca.send_replace(b"OTHER".to_vec());
    assert_eq!(running.writes.recv().await.as_deref(), Some("apply"));
    assert_eq!(start.elapsed(), Duration::ZERO, "a new CA counts at once");
    running.leader.send_replace(false);
    running
        .server
        .change(|object| object["webhooks"] = json!([]));
    assert_eq!(running.written().await, [""; 0]);
}

#[tokio::test]
async fn deleting_what_is_gone_is_fine() {
    let (server, mut writes) = Server::new();
    *server.object.lock().unwrap() =
        Some(serde_json::to_value(configuration::build(&options(), &[], |_| None)).unwrap());
    for _ in 0..2 {
        delete(server.client(), "kimup").await.unwrap();
        assert_eq!(writes.recv().await.as_deref(), Some("delete"));
    }
    assert_eq!(*server.object.lock().unwrap(), None);
}

#[test]
fn a_bundle_of_somebody_elses_is_kept() {
    let build =
        |bundle: &dyn Fn(&str) -> Option<Vec<u8>>| configuration::build(&options(), &[], bundle);
    let first = "labelled-fail.kimup.cloudavenue.io";
    let bundle = |object: &MutatingWebhookConfiguration, at: usize| {
        let entry = entries(object).nth(at).unwrap();
        entry
            .client_config
            .ca_bundle
            .clone()
            .map(|b| String::from_utf8(b.0).unwrap())
    };
    let check = |live: Option<&MutatingWebhookConfiguration>, expected: [Option<&str>; 2]| {
        let wanted = wanted(&options(), &[], None, live);
        assert_eq!(
            [bundle(&wanted, 0), bundle(&wanted, 1)],
            expected.map(|e| e.map(str::to_owned))
        );
    };
    check(None, [None, None]);
    check(Some(&build(&|_| None)), [None, None]);
    check(
        Some(&build(&|name| Some(name[..10].into()))),
        [Some("labelled-f"), Some("labelled-p")],
    );
    // A new entry takes that of another.
    check(
        Some(&build(&|name| (name == first).then(|| b"A".to_vec()))),
        [Some("A"), Some("A")],
    );
    let ours = wanted(
        &options(),
        &[],
        Some(b"OURS"),
        Some(&build(&|_| Some(b"A".to_vec()))),
    );
    assert_eq!(bundle(&ours, 0).as_deref(), Some("OURS"));
}
