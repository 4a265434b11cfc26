//! Nothing that the test bed starts outlives the process that started it, whatever ends that one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kimup_testbed::{KimupOptions, KimupProcess, eventually};
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(20);

fn testbed(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimup-testbed"));
    command.args(args).env_remove("KIMUP_KEEP_LOGS");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line
}

/// A zombie is gone: whoever adopted it has not looked yet.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The processes whose command line names this folder.
fn processes_of(folder: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let names_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder.to_str().unwrap()) && alive(*pid)
    };
    pids.filter(names_it).collect()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Starts `sleep` under a holder, ends the holder in some way, and looks at what is left.
async fn check(name: &str, logs_stay: bool, end: impl Fn(&mut Child)) {
    let mut holder = testbed(&["hold", "sleep", "600"]);
    let line = first_line(&mut holder);
    let (pid, folder) = line.trim().split_once(' ').unwrap();
    let (pid, folder): (u32, PathBuf) = (pid.parse().unwrap(), folder.into());
    assert!(alive(pid), "{name}: it runs");
    end(&mut holder);
    holder.wait().unwrap();
    eventually(DEADLINE, &format!("{name}: the program ends"), async || !alive(pid)).await;
    if logs_stay {
        let data_is_gone = async || !folder.join("hold-0/data").exists();
        eventually(DEADLINE, &format!("{name}: the data goes"), data_is_gone).await;
        assert!(folder.join("hold-0/held.log").exists(), "{name}: the logs stay");
        std::fs::remove_dir_all(&folder).unwrap();
    } else {
        eventually(DEADLINE, &format!("{name}: the folder goes"), async || !folder.exists()).await;
    }
    eventually(DEADLINE, &format!("{name}: no helper is left"), async || processes_of(&folder).is_empty()).await;
}

#[tokio::test]
async fn nothing_outlives_its_holder() {
    check("return from main", false, |holder| {
        drop(holder.stdin.take());
    })
    .await;
    check("SIGKILL", false, |holder| signal(holder, Signal::KILL)).await;
    check("SIGTERM", false, |holder| signal(holder, Signal::TERM)).await;
    check("SIGINT", false, |holder| signal(holder, Signal::INT)).await;
    check("panic", true, |holder| {
        holder.stdin.take().unwrap().write_all(b"panic").unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = kimup_testbed::run_dir().unwrap().folder("absent").unwrap();
    let spec = kimup_testbed::ProcessSpec::new("absent", "/no/such/program".into(), &folder);
    let mut process = kimup_testbed::Process::spawn(&spec).unwrap();
    let state = eventually(DEADLINE, "it ends", async || process.check_running().err()).await;
    let message = format!("{state:#}");
    assert!(message.contains("absent ended by itself") && message.contains("/no/such/program"), "{message}");
}

#[tokio::test]
async fn a_cluster_goes_with_its_holder() {
    let mut holder = testbed(&["up"]);
    let line = first_line(&mut holder);
    let up: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let folder = PathBuf::from(up["folder"].as_str().unwrap());
    // Six programs and the janitor name the folder in their command lines.
    assert!(processes_of(&folder).len() >= 7, "{:?}", processes_of(&folder));
    signal(&holder, Signal::KILL);
    holder.wait().unwrap();
    eventually(DEADLINE, "every process ends", async || processes_of(&folder).is_empty()).await;
    eventually(DEADLINE, "the folder goes", async || !folder.exists()).await;
}

#[tokio::test]
async fn what_is_left_running_ends_with_its_script() {
    let mut holder = testbed(&["up", "--detach"]);
    let up: serde_json::Value = serde_json::from_str(&first_line(&mut holder)).unwrap();
    assert!(holder.wait().unwrap().success());
    let folder = PathBuf::from(up["folder"].as_str().unwrap());
    let answers = async || {
        let url = format!("http://{}/v2/", up["registry"].as_str().unwrap());
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        client.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    };
    kimup_testbed::install_crypto_provider();
    assert!(answers().await && processes_of(&folder).len() >= 6, "{:?}", processes_of(&folder));
    assert!(Command::new(up["stop"].as_str().unwrap()).status().unwrap().success());
    eventually(DEADLINE, "every process ends", async || processes_of(&folder).is_empty()).await;
    assert!(!answers().await && !folder.exists());
}

#[tokio::test]
async fn kimup_is_started_watched_and_ended() {
    let options = KimupOptions::new(env!("CARGO_BIN_EXE_kimup-testbed"), "/no/kubeconfig");
    let started = KimupProcess::start(KimupOptions { ready_within: None, ..options.clone() }).await.unwrap();
    let state = started.ready().await.unwrap_err().to_string();
    assert_eq!(state, "/readyz answers 503 Service Unavailable: caches are empty");
    started.wait_ready(DEADLINE).await.unwrap();
    drop(started);

    let mut kimup = KimupProcess::start(options.clone()).await.unwrap();
    kimup.ready().await.unwrap();
    assert!((kimup.metric("syncs_total", &[("result", "Success")]).await.unwrap() - 3.0).abs() < 1e-9);
    assert!(kimup.rss_bytes().unwrap() > 1 << 20);
    kimup.freeze().unwrap();
    assert!(kimup.ready().await.is_err(), "it hangs");
    kimup.thaw().unwrap();
    kimup.wait_ready(DEADLINE).await.unwrap();
    kimup.kill();
    assert!(kimup.ready().await.is_err() && kimup.rss_bytes().is_err(), "it is gone");
    let mut kimup = kimup.start_again().await.unwrap();
    assert!(!kimup.terminate(DEADLINE).await.unwrap().success());

    let error = KimupProcess::start(KimupOptions { command: "no-such".to_owned(), ..options }).await.err().unwrap();
    assert!(format!("{error:#}").contains("usage:"), "the end of its log is in the error: {error:#}");
}
