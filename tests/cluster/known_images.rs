//! What Pods of a known Image cost: no connection to anybody, and no look-up of a name.
//!
//! The kernel sees to it: meanwhile it gives the process no new descriptor (`RLIMIT_NOFILE` 0, which leaves those that are
//! there), so that nothing can be connected, wherever it may lead. That needs no privilege, and counts this process alone.
//! What was only tried shows in counters: in those of kimup, of the API server and of the registry, and, where strace is
//! installed and may look, in the calls themselves.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kimup_testbed::{KimupProcess, Reviews, ScriptedRegistry, WebhookClient, eventually, run_dir};
use kube::api::Api;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::process::{Child, ChildStderr, Command};

use crate::degraded_stub::{Bed, object, reviews};
use crate::own::{Own, SYSTEM, leads};
use crate::support::DEADLINE;

const ADMISSIONS: u64 = 10_000;
/// At once, each on a connection of its own.
const CONNECTIONS: usize = 8;

/// As long as this lives, the kernel gives a process no new descriptor.
struct Sealed {
    pid: Pid,
    before: Rlimit,
}

impl Sealed {
    fn new(kimup: &KimupProcess) -> Self {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", kimup.id())).unwrap();
        let limits = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let [current, maximum] = [0, 1].map(|at| limits.split_whitespace().nth(at).unwrap().parse().ok()); // or unlimited
        let (pid, before) = (pid(kimup.id()), Rlimit { current, maximum });
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(0), maximum }).unwrap();
        Self { pid, before }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let _ = prlimit(Some(self.pid), Resource::Nofile, self.before); // it may be gone
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

/// strace, where it is installed and may look: the calls of a process that make a socket or a connection.
struct Trace {
    strace: Child,
    file: PathBuf,
    /// Its messages: it would stop if nobody took them.
    _said: Lines<BufReader<ChildStderr>>,
}

impl Trace {
    async fn start(kimup: &KimupProcess) -> Option<Self> {
        let file = run_dir().unwrap().folder("strace").unwrap().join("calls");
        let mut strace = Command::new("strace")
            .args(["-f", "-e", "trace=socket,connect", "-p", &kimup.id().to_string(), "-o"])
            .arg(&file)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .inspect_err(|error| println!("no strace: {error}"))
            .ok()?;
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        while let Some(line) = said.next_line().await.unwrap() {
            if line.contains(" attached") {
                return Some(Self { strace, file, _said: said });
            }
            println!("{line}"); // it may not look
        }
        None
    }

    /// The calls so far.
    async fn end(mut self) -> Vec<String> {
        kill_process(pid(self.strace.id().unwrap()), Signal::INT).unwrap();
        self.strace.wait().await.unwrap();
        let calls = std::fs::read_to_string(&self.file).unwrap();
        let is_meant = |line: &&str| line.contains("socket(") || line.contains("connect(");
        calls.lines().filter(is_meant).map(str::to_owned).collect()
    }
}

/// So many reviews, which must all be answered right.
async fn admit(client: &WebhookClient, reviews: &Reviews, count: u64) {
    let posts = futures::stream::iter(0..count).map(|number| async move {
        let answer = client.post(&reviews.body(number)).await?;
        reviews.check(number, &answer)
    });
    let answers: Vec<anyhow::Result<()>> = posts.buffer_unordered(CONNECTIONS).collect().await;
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).take(5).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// 10,000 reviews while the process can make no connection, and tries none.
async fn costs_nothing(kimup: &KimupProcess, client: &WebhookClient, reviews: &Reviews) {
    admit(client, reviews, CONNECTIONS as u64).await;
    assert_eq!(client.connections(), CONNECTIONS as u64);
    let trace = Trace::start(kimup).await;
    let sealed = Sealed::new(kimup);
    admit(client, reviews, ADMISSIONS).await;
    drop(sealed);
    if let Some(trace) = trace {
        assert_eq!(trace.end().await, [""; 0]);
        println!("strace saw no connection");
    }
    assert_eq!(client.connections(), CONNECTIONS as u64, "nobody was turned away");
}

#[tokio::test]
async fn the_webhook_makes_no_connection_for_a_known_image() {
    let bed = Bed::new("known").await;
    let socket = UnixListener::bind(&bed.socket).unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while socket.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst); // and hangs up
        }
    });
    let kimup = bed.start().await;
    let client = bed.client(&kimup);
    // It is ready once it has listed; the watches of Namespaces and Images follow.
    eventually(DEADLINE, "it watches", async || bed.api.watches() == 2).await;
    let counts = async || {
        let questions = kimup.metric("kimup_questions_total", &[]).await.unwrap().to_string();
        (bed.api.requests(), accepted.load(Ordering::SeqCst), questions)
    };
    let before = counts().await;
    costs_nothing(&kimup, &client, &reviews("app-042", "1.0.0")).await;
    assert_eq!(counts().await, before);
    // Of this one nothing is known: it does try, is seen to, and cannot while nothing can be connected.
    let mut unknown = object("new", "");
    unknown.as_object_mut().unwrap().remove("status");
    bed.api.put(unknown).unwrap();
    let trace = Trace::start(&kimup).await;
    let sealed = Sealed::new(&kimup);
    eventually(DEADLINE, "it asks", async || {
        let (_, answer) = client.post(&reviews("new", "1.0.0").body(0)).await.unwrap();
        String::from_utf8_lossy(&answer).contains("sync")
    })
    .await;
    drop(sealed);
    assert_eq!(accepted.load(Ordering::SeqCst), before.1);
    assert!(counts().await.2 > before.2);
    if let Some(trace) = trace {
        assert_ne!(trace.end().await, [""; 0]);
    }
    client.post(&reviews("new", "1.0.0").body(0)).await.unwrap();
    assert!(accepted.load(Ordering::SeqCst) > before.1);
}

/// What kimup asks for by the clock, however many Pods there are: its CA, its webhook configuration, and whether kinds are
/// installed that need not be.
const BY_THE_CLOCK: [&str; 4] = [
    "/api/v1/namespaces/kimup-system/secrets/kimup-url-ca",
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/kimup-url",
    "/apis/argoproj.io/v1alpha1",
    "/apis/apps.kruise.io/v1alpha1",
];

/// The requests of kimup that the API server has had, but for the Lease's, as the audit log says: verb and address.
fn requests(own: &Own) -> Vec<String> {
    let text = |event: &Value, pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    let log = own.cluster.audit_log().unwrap();
    let mine = log.iter().filter(|event| text(event, "/user/username").ends_with(":kimup"));
    let others = mine.filter(|event| text(event, "/objectRef/resource") != "leases");
    others.map(|event| format!("{} {}", text(event, "/verb"), text(event, "/requestURI"))).collect()
}

#[tokio::test]
async fn nor_does_a_process_that_syncs_as_well() {
    let own = Own::start().await;
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.set_tags("known/app", &["1.0.0", "1.1.0"]);
    let mut options = own.options("known-run").await;
    options.args.extend(["--plain-http-registry".to_owned(), registry.host()]);
    let kimup = KimupProcess::start(options).await.unwrap();
    leads(&kimup, DEADLINE).await;
    let shop = own.shop("known").await;
    let image = registry.image("known/app");
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.1.0").await;
    let secrets: Api<Secret> = Api::namespaced(own.cluster.client().await.unwrap(), SYSTEM);
    let ca = secrets.get("kimup-url-ca").await.unwrap().data.unwrap().remove("ca.crt").unwrap();
    let client = WebhookClient::new(kimup.webhook(), "127.0.0.1", std::str::from_utf8(&ca.0).unwrap()).unwrap();
    let reviews =
        Reviews { namespace: shop.namespace.clone(), text: format!("{image}:1.0.0"), wanted: format!("{image}:1.1.0") };
    eventually(DEADLINE, "it knows the Image", async || reviews.check(0, &client.post(&reviews.body(0)).await?)).await;
    let asked = async || {
        let questions = kimup.metric("kimup_questions_total", &[]).await.unwrap();
        let tried = kimup.metric("kimup_registry_requests_total", &[]).await.unwrap();
        (registry.requests().len(), questions.to_string(), tried.to_string())
    };
    let (before, had) = (asked().await, requests(&own).len());
    assert!(before.0 > 0);
    costs_nothing(&kimup, &client, &reviews).await;
    assert_eq!(asked().await, before);
    let all = requests(&own).split_off(had);
    let is_of_clock = |request: &&String| request.strip_prefix("get ").is_some_and(|path| BY_THE_CLOCK.contains(&path));
    let (of_clock, others): (Vec<_>, Vec<_>) = all.iter().partition(is_of_clock);
    assert_eq!(others, [""; 0]);
    assert!(of_clock.len() < 100, "{of_clock:?}"); // some a second at most
    // What is asked is counted.
    shop.sync("app").await;
    assert!(asked().await.0 > before.0);
    eventually(DEADLINE, "the audit log shows it", async || requests(&own).len() > had).await;
}
