use futures::FutureExt;
use url::Url;

use super::*;

fn key(host: &str) -> HostKey {
    (Origin::of(&Url::parse(&format!("https://{host}")).unwrap()).unwrap(), false)
}

fn unreachable(host: &str) -> ListError {
    RegistryError::Unreachable { step: Step::Connect, host: host.to_owned(), cause: "refused".to_owned() }.into()
}

fn down() -> Result<(), ListError> {
    Err(unreachable("r.io"))
}

fn asker(asker: Asker) -> watch::Receiver<Asker> {
    watch::channel(asker).1
}

impl Hosts {
    async fn ask(&self, host: &str, by: Asker) -> Result<Place, ListError> {
        self.enter(&key(host), asker(by)).await
    }

    /// Whether one gets in now; it leaves at once, without having learnt anything.
    fn opens(&self, host: &str, by: Asker) -> bool {
        // The test itself never yields, so tokio would make it.
        let asked = tokio::task::unconstrained(self.ask(host, by));
        asked.now_or_never().is_some_and(|place| place.is_ok())
    }

    /// As a listing of `repository` would.
    async fn list(&self, repository: &str, by: Asker, outcome: Result<(), ListError>) -> bool {
        let Ok(place) = self.ask("r.io", by).await else {
            return false;
        };
        place.learn("r.io", repository, &outcome);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_host_holds_up_nobody_else() {
    let hosts = Hosts::default();
    let mut inside = Vec::new();
    for _ in 0..PER_HOST {
        inside.push(hosts.ask("slow.io", Asker::Schedule).await.unwrap());
    }
    assert!(!hosts.opens("slow.io", Asker::Schedule));
    assert!(hosts.opens("other.io", Asker::Schedule));
    // A Pod that waits has a place of its own, and so has whoever starts to be waited for.
    assert!(hosts.opens("slow.io", Asker::Question));
    let (hurry, by) = watch::channel(Asker::Schedule);
    let slow = key("slow.io");
    let mut waiting = Box::pin(hosts.enter(&slow, by));
    assert!((&mut waiting).now_or_never().is_none());
    hurry.send_replace(Asker::Question);
    inside.push((&mut waiting).now_or_never().unwrap().unwrap());
    inside.push(hosts.ask("slow.io", Asker::Person).await.unwrap());
    assert!(!hosts.opens("slow.io", Asker::Person));
    inside.remove(0);
    assert!(hosts.opens("slow.io", Asker::Schedule));
}

#[tokio::test(start_paused = true)]
async fn so_many_in_all() {
    let hosts = Hosts::default();
    let mut inside = Vec::new();
    for n in 0..IN_ALL {
        inside.push(hosts.ask(&format!("r{n}.io"), Asker::Schedule).await.unwrap());
    }
    assert!(!hosts.opens("one-more.io", Asker::Schedule));
    assert!(hosts.opens("one-more.io", Asker::Question));
    inside.pop();
    assert!(hosts.opens("one-more.io", Asker::Schedule));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_down_is_asked_by_one_at_a_time() {
    let hosts = Hosts::default();
    assert!(hosts.list("a", Asker::Schedule, down()).await);
    assert!(!hosts.list("b", Asker::Schedule, Ok(())).await, "nothing is sent during the pause");
    assert_eq!(hosts.ask("r.io", Asker::Schedule).await.err(), Some(unreachable("r.io")));
    tokio::time::advance(FIRST_PAUSE).await;
    let probe = hosts.ask("r.io", Asker::Schedule).await.unwrap();
    let (host, other) = (key("r.io"), key("r.io"));
    let mut waiting = Box::pin(hosts.enter(&host, asker(Asker::Schedule)));
    assert!((&mut waiting).now_or_never().is_none(), "one at a time");
    probe.learn("r.io", "a", &down());
    drop(probe);
    assert_eq!((&mut waiting).now_or_never().unwrap().err(), Some(unreachable("r.io")));
    // And once it is back everybody goes.
    tokio::time::advance(FIRST_PAUSE * 2).await;
    let probe = hosts.ask("r.io", Asker::Schedule).await.unwrap();
    let mut waiting = Box::pin(hosts.enter(&other, asker(Asker::Schedule)));
    assert!((&mut waiting).now_or_never().is_none());
    probe.learn("r.io", "a", &Ok(()));
    drop(probe);
    assert!((&mut waiting).now_or_never().unwrap().is_ok());
    assert!(hosts.opens("r.io", Asker::Schedule));
}

#[tokio::test(start_paused = true)]
async fn who_goes_through_a_pause() {
    let hosts = Hosts::default();
    for _ in 0..4 {
        assert!(hosts.list("a", Asker::Person, down()).await);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(!hosts.opens("r.io", Asker::Question));
    assert!(hosts.opens("r.io", Asker::Person));
    tokio::time::advance(FIRST_PAUSE).await;
    assert!(!hosts.opens("r.io", Asker::Schedule), "the fourth pause is longer");
    assert!(hosts.opens("r.io", Asker::Question));
    // Someone who gives up leaves the next one to find out.
    let probe = hosts.ask("r.io", Asker::Question).await.unwrap();
    assert!(!hosts.opens("r.io", Asker::Question));
    assert!(hosts.opens("r.io", Asker::Person), "a person does not wait for the clock's try");
    drop(probe);
    assert!(hosts.opens("r.io", Asker::Question));
    assert!(hosts.list("a", Asker::Person, Ok(())).await);
    assert!(hosts.opens("r.io", Asker::Schedule));
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_five_minutes() {
    let mut health = Health::default();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let now = Instant::now();
        health.learn(now, now, "a", Found::Unreachable(unreachable("r.io")), 1.0);
        // Those who were under way tell the same outage again.
        health.learn(
            now,
            now.checked_sub(Duration::from_secs(1)).unwrap(),
            "b",
            Found::Unreachable(unreachable("r.io")),
            1.0,
        );
        let until = health.down.as_ref().unwrap().retry_at;
        pauses.push((until - now).as_secs());
        tokio::time::advance(until - now).await;
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    let now = Instant::now();
    health.learn(now, now, "a", Found::Answer, 1.0);
    health.learn(now, now, "a", Found::Unreachable(unreachable("r.io")), 0.75);
    assert_eq!(health.down.unwrap().retry_at - now, Duration::from_millis(3750), "an answer starts anew; jittered");
}

#[tokio::test(start_paused = true)]
async fn a_repository_in_trouble_is_no_host_that_is_down() {
    let check = |outcomes: &str, expected: bool| {
        let mut health = Health::default();
        let now = Instant::now();
        for outcome in outcomes.split(' ') {
            let broken = RegistryError::Server { host: "r.io".to_owned(), status: 500 };
            let found = match outcome {
                "ok" => Found::Answer,
                "gone" => Found::Unreachable(unreachable("r.io")),
                _ => Found::Nothing(broken.into()),
            };
            health.learn(now, now, outcome, found, 1.0);
        }
        assert_eq!(health.down.is_some(), expected, "{outcomes}");
    };
    check("a a a a a a a a", false);
    check("a b c d", false);
    check("a b c d e", true);
    check("a b c d ok e", false);
    check("a b c d e ok", false);
    check("gone", true);
    check("gone a", false);
    check("gone a b c d e", true);
}

#[test]
fn what_is_the_host() {
    let host = || "r.io".to_owned();
    let check = |error: RegistryError, expected: &str| {
        let found = match Found::of(&error.clone().into(), "r.io") {
            Found::Answer => "answer",
            Found::Unreachable(_) => "unreachable",
            Found::Nothing(_) => "nothing",
        };
        assert_eq!(found, expected, "{error}");
    };
    let at = |step, host: &str| RegistryError::Unreachable { step, host: host.to_owned(), cause: String::new() };
    check(at(Step::Dns, "r.io"), "unreachable");
    check(at(Step::Tls, "r.io"), "unreachable");
    check(at(Step::Read, "r.io"), "nothing");
    check(at(Step::Connect, "cdn.io"), "nothing");
    check(RegistryError::Timeout { host: host(), after: FIRST_PAUSE }, "nothing");
    check(RegistryError::Server { host: host(), status: 503 }, "nothing");
    check(RegistryError::NotFound { host: host(), repository: "a".to_owned() }, "answer");
    check(RegistryError::RateLimited { host: host(), retry_after: None }, "answer");
    check(RegistryError::Unauthorized { host: host(), sent: true, cause: String::new() }, "answer");
}

#[tokio::test(start_paused = true)]
async fn idle_hosts_are_forgotten() {
    let hosts = Hosts::default();
    assert!(hosts.list("a", Asker::Schedule, down()).await);
    let inside = hosts.ask("slow.io", Asker::Schedule).await.unwrap();
    for n in 0..MAX_HOSTS * 2 {
        assert!(hosts.opens(&format!("r{n}.io"), Asker::Schedule));
    }
    assert!(hosts.known.lock().unwrap().len() <= MAX_HOSTS);
    assert!(!hosts.opens("r.io", Asker::Schedule), "one that pauses is not");
    assert_eq!(hosts.host(&key("slow.io")).places.available_permits(), PER_HOST - 1, "nor is one in use");
    drop(inside);
}
