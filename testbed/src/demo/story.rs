//! What the demo tells, scene by scene. Each scene proves its point or fails.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kimup_testbed::try_eventually;
use serde_json::Value;

use super::shell::Show;
use super::stage::{Stage, USER};
use super::table::Table;

/// For what takes a second or two.
const DEADLINE: Duration = Duration::from_secs(60);
const PODS_JSON: &str = "kubectl get pods -n demo -o json";
const EVENTS_JSON: &str = "kubectl get events.v1.events.k8s.io -n demo -o json";
const PODS: &str =
    "kubectl get pods -n demo -o custom-columns=POD:.metadata.name,IMAGE:.spec.containers[*].image,PHASE:.status.phase";

/// Tells it all; `keep` leaves everything running at the end.
pub async fn tell(kimup: PathBuf, keep: bool) -> Result<()> {
    let began = Instant::now();
    println!(
        "kimup keeps workloads on the newest image tag that a rule allows. This is its main job, on a real control"
    );
    println!("plane with simulated nodes and a real registry. What follows a $ is really run, its output below it.");
    println!("Starting them ...");
    let mut stage = Stage::set(&kimup).await?;
    let mut table = Table::default();
    cluster(&mut stage, began).await?;
    registry(&stage, &mut table).await?;
    opt_in(&stage, &mut table).await?;
    newer_tag(&stage, &mut table).await?;
    empty_registry(&stage, &mut table).await?;
    outage(&mut stage, &mut table).await?;
    back(&mut stage, &mut table).await?;
    stage.shell.title("Who did what, when and why");
    table.events(&json(&stage, EVENTS_JSON).await?);
    // The registry's address says nothing here.
    print!("{}", table.render(&format!("{}/", stage.registry)));
    stage.shell.say("Times are UTC. From the Events, the Image's condition, and the annotation kimup.cloudavenue.io/applied of the Pods.");
    if keep {
        return stage.keep().await;
    }
    let seconds = began.elapsed().as_secs();
    println!("\nDone in {seconds} s. All of it is stopped and removed; `make demo KEEP=1` leaves it running.");
    Ok(())
}

async fn cluster(stage: &mut Stage, began: Instant) -> Result<()> {
    stage.shell.title("1. A cluster, a registry, kimup");
    let seconds = began.elapsed().as_secs_f64();
    stage.shell.say(&format!("Up in {seconds:.1} s. How kubectl, crane and kimup find them:"));
    stage.print_exports();
    stage.shell.run("kubectl get nodes", Show::All).await?;
    stage.shell.say(
        "kimup runs beside the cluster here, with exactly the rights it has inside (there: kubectl apply -k deploy):",
    );
    let files = ["namespace", "crds", "rbac", "pull-secrets-binding"].map(|file| format!(" -f deploy/{file}.yaml"));
    stage.shell.run(&format!("kubectl apply --server-side{}", files.concat()), Show::First(3)).await?;
    stage.start_kimup().await?;
    stage
        .shell
        .run("kubectl wait --for=create mutatingwebhookconfiguration/kimup-url --timeout=60s", Show::All)
        .await?;
    Ok(())
}

async fn registry(stage: &Stage, table: &mut Table) -> Result<()> {
    let shell = &stage.shell;
    shell.title("2. A private image with two tags");
    table.scene();
    let login = format!("crane auth login $REGISTRY -u {} -p {}", USER.0, USER.1);
    shell.run(&login, Show::Last(1)).await?;
    shell.run("tar -cf - LICENSE | crane append -f - -t $REGISTRY/shop/web:1.0.0", Show::Last(1)).await?;
    push(stage, "1.1.0").await?;
    shell.run("crane ls $REGISTRY/shop/web", Show::All).await?;
    table.you("pushed 1.0.0 and 1.1.0", "");
    Ok(())
}

async fn opt_in(stage: &Stage, table: &mut Table) -> Result<()> {
    let shell = &stage.shell;
    shell.title("3. A Deployment with the old tag, opted in by one annotation");
    table.scene();
    shell.run("kubectl create namespace demo", Show::All).await?;
    let login = format!("--docker-server=$REGISTRY --docker-username={} --docker-password={}", USER.0, USER.1);
    shell.run(&format!("kubectl create secret docker-registry regcred -n demo \\\n    {login}"), Show::All).await?;
    shell.say("Which repository, which rules:");
    shell.run(&format!("kubectl apply -n demo -f - <<EOF\n{IMAGE}\nEOF"), Show::All).await?;
    table.you("applied Image web", "rules patch and minor");
    wait_asked(stage).await?;
    shell.say("The annotation stands on the Pod template:");
    shell.run(&format!("kubectl apply -n demo -f - <<EOF\n{DEPLOYMENT}\nEOF"), Show::All).await?;
    table.you("applied Deployment web", "with 1.0.0, opted in");
    shell.run("kubectl rollout status deployment/web -n demo --timeout=60s", Show::Last(1)).await?;
    shell.say("The Pods start on the newest tag, and the manifest keeps its text:");
    pods_run(stage, "1.1.0").await?;
    let text = "kubectl get deployment web -n demo -o jsonpath='{.spec.template.spec.containers[0].image}{\"\\n\"}'";
    let text = shell.run(text, Show::All).await?;
    ensure!(text.trim_end().ends_with(":1.0.0"), "the manifest should still say 1.0.0");
    settled(stage, "1.1.0").await?;
    table.pods(&json(stage, PODS_JSON).await?);
    Ok(())
}

async fn newer_tag(stage: &Stage, table: &mut Table) -> Result<()> {
    let shell = &stage.shell;
    shell.title("4. A newer tag is pushed");
    table.scene();
    push(stage, "1.2.0").await?;
    table.you("pushed 1.2.0", "");
    let pushed = Instant::now();
    shell.say("The interval is 5m; this asks at once:");
    shell.run("kubectl annotate image web -n demo kimup.cloudavenue.io/action=refresh", Show::All).await?;
    shell.run("kubectl wait image web -n demo --for=jsonpath='{.status.tag}'=1.2.0 --timeout=60s", Show::All).await?;
    let seconds = pushed.elapsed().as_secs_f64();
    shell.say(&format!("{seconds:.1} s after the push all Pods are new and ready (simulated nodes pull nothing):"));
    pods_run(stage, "1.2.0").await?;
    table.pods(&json(stage, PODS_JSON).await?);
    shell.run("kubectl get kimg -n demo", Show::All).await?;
    shell.run("kubectl rollout history deployment/web -n demo", Show::All).await?;
    shell
        .run("kubectl get events -n demo --field-selector reportingComponent=kimup.cloudavenue.io/kimup", Show::All)
        .await?;
    let describe = "kubectl describe image web -n demo | sed -n '/^  Conditions:/,/^  Observed Gen/p'";
    shell.run(describe, Show::First(15)).await?;
    Ok(())
}

async fn empty_registry(stage: &Stage, table: &mut Table) -> Result<()> {
    let shell = &stage.shell;
    shell.title("5. The registry loses every tag, and nothing moves");
    table.scene();
    let before = pods(stage).await?;
    let delete = "for tag in $(crane ls $REGISTRY/shop/web); do crane delete $REGISTRY/shop/web:$tag; done";
    shell.run(delete, Show::All).await?;
    table.you("deleted every tag", "");
    shell.say("Three syncs:");
    let sync = "for n in 1 2 3; do
  kubectl annotate image web -n demo --overwrite kimup.cloudavenue.io/requestedAt=$n
  kubectl wait image web -n demo --for=jsonpath='{.status.lastHandledRequest}'=$n --timeout=20s
done";
    shell.run(sync, Show::All).await?;
    shell.run("kubectl get kimg -n demo", Show::All).await?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].message}{\"\\n\"}";
    let why = shell.run(&format!("kubectl get image web -n demo -o jsonpath='{ready}'"), Show::All).await?;
    shell.say("The same three Pods, the same image:");
    pods_run(stage, "1.2.0").await?;
    ensure!(pods(stage).await? == before, "a Pod was replaced though no newer tag was there");
    table.sync("three syncs, 1.2.0 kept", why.trim());
    Ok(())
}

async fn outage(stage: &mut Stage, table: &mut Table) -> Result<()> {
    stage.shell.title("6. kimup is killed, and a Pod deleted while it is down");
    table.scene();
    stage.shell.run(&format!("kill -KILL {}", stage.kimup_id()?), Show::All).await?;
    stage.kimup_is_gone().await?;
    table.you("killed kimup", "");
    let shell = &stage.shell;
    let first = "$(kubectl get pods -n demo -l app=web -o name | head -n 1)";
    shell.run(&format!("kubectl delete {first} -n demo"), Show::All).await?;
    table.you("deleted a Pod of web", "");
    let denied = "kubectl get events -n demo --field-selector reason=FailedCreate -o custom-columns=MESSAGE:.message --no-headers";
    try_eventually(DEADLINE, "the replacement is denied", async || match shell.quietly(denied).await {
        Ok(output) if output.contains("kimup") => Ok(()),
        Ok(output) => bail!("the Events are: {output}"),
        Err(error) => Err(error),
    })
    .await?;
    let one_less = "kubectl wait deployment web -n demo --for=jsonpath='{.status.availableReplicas}'=2 --timeout=60s";
    shell.quietly(one_less).await?;
    shell.say("No Pod rather than one with the wrong tag (failure-policy: ignore would admit it with the manifest's):");
    shell.run(&format!("{denied} | head -n 1 | fold -s -w 110"), Show::All).await?;
    shell.run("kubectl get deployment web -n demo", Show::All).await?;
    shell.say("Who is not opted in does not notice:");
    shell.run("kubectl run bystander -n demo --image=$REGISTRY/shop/web:1.0.0", Show::All).await?;
    table.denial(&json(stage, EVENTS_JSON).await?);
    table.pods(&json(stage, PODS_JSON).await?);
    Ok(())
}

async fn back(stage: &mut Stage, table: &mut Table) -> Result<()> {
    stage.shell.title("7. kimup is started again, the registry still empty");
    table.scene();
    table.you("started kimup again", "");
    let started = Instant::now();
    stage.start_kimup().await?;
    let shell = &stage.shell;
    let available = "kubectl wait deployment web -n demo --for=jsonpath='{.status.availableReplicas}'=3 --timeout=80s";
    shell.run(available, Show::All).await?;
    let seconds = started.elapsed().as_secs_f64();
    shell.say(&format!("{seconds:.1} s later the third Pod is there, with the tag of its siblings:"));
    pods_run(stage, "1.2.0").await?;
    table.pods(&json(stage, PODS_JSON).await?);
    Ok(())
}

/// Pushes an image that differs from the first one by a label.
async fn push(stage: &Stage, tag: &str) -> Result<()> {
    let command = format!("crane mutate $REGISTRY/shop/web:1.0.0 --label version={tag} -t $REGISTRY/shop/web:{tag}");
    stage.shell.run(&command, Show::Last(1)).await.map(drop)
}

/// Shows the Pods; an error unless the three of web run `tag`.
async fn pods_run(stage: &Stage, tag: &str) -> Result<()> {
    let pods = stage.shell.run(PODS, Show::All).await?;
    let right = pods.lines().filter(|line| line.starts_with("web-") && line.contains(&format!(":{tag} "))).count();
    ensure!(right == 3, "three Pods of web should run {tag}");
    Ok(())
}

/// Waits until the API server asks kimup, which it does a moment after the webhook configuration is written: a Pod that
/// is tried but not created tells.
async fn wait_asked(stage: &Stage) -> Result<()> {
    let pod = "kubectl run probe -n demo --image=$REGISTRY/shop/web:1.0.0 --annotations=kimup.cloudavenue.io/enabled=true \
        --dry-run=server -o jsonpath='{.spec.containers[0].image}'";
    try_eventually(DEADLINE, "the API server asks kimup about opted-in Pods", async || {
        let image = stage.shell.quietly(pod).await?;
        ensure!(image.ends_with(":1.1.0"), "an opted-in Pod gets {image}");
        anyhow::Ok(())
    })
    .await
}

/// Waits until the first rollout has settled, if there is one.
async fn settled(stage: &Stage, tag: &str) -> Result<()> {
    try_eventually(DEADLINE, &format!("Image web settles on {tag}"), async || {
        let status = json(stage, "kubectl get image web -n demo -o json").await?["status"].take();
        ensure!(status["tag"] == *tag && status["rollout"].is_null(), "its status is {status}");
        anyhow::Ok(())
    })
    .await
}

/// Name, UID and containers of each Pod that is not ending, sorted.
async fn pods(stage: &Stage) -> Result<Vec<String>> {
    let list = json(stage, PODS_JSON).await?;
    let of =
        |pod: &Value| format!("{} {} {}", pod["metadata"]["name"], pod["metadata"]["uid"], pod["spec"]["containers"]);
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let mut pods: Vec<String> = list["items"].as_array().into_iter().flatten().filter(stays).map(of).collect();
    pods.sort();
    Ok(pods)
}

async fn json(stage: &Stage, command: &str) -> Result<Value> {
    let output = stage.shell.quietly(command).await?;
    serde_json::from_str(&output).with_context(|| format!("{command} gave no JSON: {output}"))
}

const IMAGE: &str = "apiVersion: kimup.cloudavenue.io/v1alpha1
kind: Image
metadata:
  name: web
spec:
  image: $REGISTRY/shop/web
  baseTag: 1.0.0
  imagePullSecrets:
    - name: regcred
  triggers:
    - type: interval
      value: 5m
  rules:
    - name: patch
      type: semver-patch
      actions: [{type: apply}]
    - name: minor
      type: semver-minor
      actions: [{type: apply}]";

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 3
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
      annotations:
        kimup.cloudavenue.io/enabled: \"true\"
    spec:
      imagePullSecrets: [{name: regcred}]
      terminationGracePeriodSeconds: 0
      containers:
        - name: app
          image: $REGISTRY/shop/web:1.0.0";
