use std::sync::atomic::AtomicUsize;

use super::super::{Keyring, Tags};
use super::*;

/// Lists one tag, the number of the listing; each takes so long.
struct Lister {
    shared: Arc<Shared>,
    took: Duration,
    listings: Arc<AtomicUsize>,
}

impl Lister {
    fn new(took: u64) -> Self {
        Self { shared: Arc::new(Shared::new().unwrap()), took: Duration::from_secs(took), listings: Arc::default() }
    }

    fn key(&self, repository: &str) -> Key {
        let (repository, keyring) = (Repository::parse(repository).unwrap(), Keyring::default());
        self.shared.key(&ListRequest { repository, keyring, insecure_skip_tls_verify: false }, &[])
    }

    async fn ask(&self, repository: &str, not_before: Instant) -> Outcome {
        self.ask_for(self.key(repository), not_before, |nth| Ok(nth.to_string())).await
    }

    async fn ask_for(
        &self,
        key: Key,
        not_before: Instant,
        answer: impl FnOnce(usize) -> Result<String, ListError> + Send + 'static,
    ) -> Outcome {
        let (listings, took) = (self.listings.clone(), self.took);
        let list = move |flight: Flight| async move {
            flight.begin();
            let nth = listings.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(took).await;
            answer(nth).map(|tag| Listing {
                tags: [tag.as_str()].into_iter().collect(),
                dropped: 0,
                requests: 1,
                endpoint: String::new(),
            })
        };
        self.shared.ask(key, not_before, Asker::Schedule, list).await
    }

    fn count(&self) -> usize {
        self.listings.load(Ordering::SeqCst)
    }
}

fn tag(outcome: Outcome) -> String {
    outcome.unwrap().tags().next().unwrap().to_owned()
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_it_runs_waits_for_it() {
    let lister = Lister::new(1);
    let now = Instant::now();
    let all = (0..100).map(|n| lister.ask(if n % 2 == 0 { "a" } else { "b" }, now));
    for found in futures::future::join_all(all).await {
        found.unwrap();
    }
    assert_eq!((lister.count(), now.elapsed()), (2, Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_is_not_taken() {
    let lister = Lister::new(2);
    let before = Instant::now();
    assert_eq!(tag(lister.ask("a", before).await), "0");
    assert_eq!(tag(lister.ask("a", before).await), "0");
    // Somebody who pushed meanwhile must see the tag.
    let pushed = before + Duration::from_secs(1);
    assert_eq!(tag(lister.ask("a", pushed).await), "1");
    assert_eq!(tag(lister.ask("a", pushed).await), "1");
    // Also while one runs that began too early: and that one ends for those who wait for it.
    let early = lister.ask("b", Instant::now());
    let late = async {
        seconds(1).await;
        lister.ask("b", Instant::now()).await
    };
    let (early, late) = tokio::join!(early, late);
    assert_eq!((tag(early), tag(late)), ("2".to_owned(), "3".to_owned()));
    assert_eq!(tag(lister.ask("b", before).await), "3", "the newer one is kept");
}

#[tokio::test(start_paused = true)]
async fn what_has_not_begun_is_new_enough_for_all() {
    let lister = Lister::new(1);
    let (turn, listings) = (Arc::new(tokio::sync::Notify::new()), lister.listings.clone());
    let wait = turn.clone();
    let list = move |flight: Flight| async move {
        wait.notified().await;
        flight.begin();
        listings.fetch_add(1, Ordering::SeqCst);
        Ok(Listing { tags: Tags::default(), dropped: 0, requests: 1, endpoint: String::new() })
    };
    let first = lister.shared.ask(lister.key("a"), Instant::now(), Asker::Schedule, list);
    let second = async {
        seconds(10).await;
        let urgent = || lister.shared.lock().values().map(|slot| *slot.running.as_ref().unwrap().asker.borrow()).max();
        lister.shared.hurry(&Repository::parse("b").unwrap());
        assert_eq!(urgent(), Some(Asker::Schedule));
        lister.shared.hurry(&Repository::parse("a").unwrap());
        assert_eq!(urgent(), Some(Asker::Question));
        turn.notify_one();
        lister.ask("a", Instant::now()).await
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(lister.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_without_the_first_asker() {
    let lister = Lister::new(5);
    let now = Instant::now();
    let waiting = async {
        seconds(2).await;
        lister.ask("a", now).await
    };
    let (first, second) = tokio::join!(tokio::time::timeout(Duration::from_secs(1), lister.ask("a", now)), waiting);
    assert!(first.is_err());
    assert_eq!((tag(second), lister.count()), ("0".to_owned(), 1));
    assert_eq!(now.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_to_all_and_not_kept() {
    let lister = Lister::new(1);
    let now = Instant::now();
    let fail =
        || {
            lister.ask_for(lister.key("a"), now, |_| {
                Err(RegistryError::Server { host: "r".to_owned(), status: 500 }.into())
            })
        };
    let (one, other) = tokio::join!(fail(), fail());
    assert!(matches!((one, other), (Err(one), Err(other)) if one == other));
    assert_eq!(lister.count(), 1);
    assert!(lister.shared.lock().is_empty());
    assert_eq!(tag(lister.ask("a", now).await), "1");
    // A panic is the end of one listing, not of those after it.
    assert!(lister.ask_for(lister.key("b"), now, |_| panic!("for a test")).await.is_err());
    assert_eq!(tag(lister.ask("b", now).await), "3");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_for_longer_than_it_may_be_taken() {
    let lister = Lister::new(1);
    let now = Instant::now();
    lister.ask("a", now).await.unwrap();
    tokio::time::sleep_until(now + KEEP - Duration::from_secs(1)).await;
    assert_eq!(tag(lister.ask("a", now).await), "0");
    tokio::time::sleep_until(now + KEEP + Duration::from_secs(1)).await;
    assert!(lister.shared.lock().is_empty());
    // Nor is what took longer than that.
    let slow = Lister::new(40);
    slow.ask("a", now).await.unwrap();
    assert!(slow.shared.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded() {
    let lister = Lister::new(0);
    let key = |n: usize| lister.key(&format!("a{n}"));
    for (n, size) in [(0, MAX_KEPT_TAGS / 2), (1, MAX_KEPT_TAGS / 2), (2, 1), (3, MAX_KEPT_TAGS + 1)] {
        let list = move |flight: Flight| async move {
            flight.begin();
            Ok(Listing {
                tags: std::iter::repeat_n("", size).collect(),
                dropped: 0,
                requests: 1,
                endpoint: String::new(),
            })
        };
        let listing = lister.shared.ask(key(n), Instant::now(), Asker::Schedule, list).await;
        assert_eq!(listing.unwrap().tags.len(), size);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let kept = |n| lister.shared.lock().contains_key(&key(n));
    assert_eq!([0, 1, 2, 3].map(kept), [false, true, true, false], "the oldest goes first");
}
