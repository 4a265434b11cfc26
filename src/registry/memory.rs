//! What listings remember of logging in, besides tokens: how a registry asked, and who is fetching a token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::auth::{Challenge, TokenKey};

/// How long a registry need not ask again after it has let us in.
const KEEP: Duration = Duration::from_hours(1);
const MAX_CHALLENGES: usize = 10_000;
/// Above this many keys, those that nobody fetches a token for are forgotten.
const MAX_TURNS: usize = 1024;

/// How registries asked whom they let in: the next listing answers at once, which saves a request that is refused.
/// Nothing here makes a registry see credentials that it has not asked for and accepted.
#[derive(Default)]
pub(super) struct Challenges(Mutex<HashMap<TokenKey, (Challenge, Instant)>>);

impl Challenges {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Challenge> {
        self.lock().get(key).filter(|(_, until)| *until > Instant::now()).map(|(challenge, _)| challenge.clone())
    }

    pub(super) fn insert(&self, key: TokenKey, challenge: Challenge) {
        let mut known = self.lock();
        let now = Instant::now();
        if known.len() >= MAX_CHALLENGES && !known.contains_key(&key) {
            known.retain(|_, (_, until)| *until > now);
            if known.len() >= MAX_CHALLENGES {
                known.clear();
            }
        }
        known.insert(key, (challenge, now + KEEP));
    }

    pub(super) fn forget(&self, key: &TokenKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenKey, (Challenge, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One at a time fetches a token of a key; the next ones find it in the cache.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<TokenKey, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Holds until it is dropped.
    pub(super) async fn take(&self, key: &TokenKey) -> OwnedMutexGuard<()> {
        self.of(key).lock_owned().await
    }

    fn of(&self, key: &TokenKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() >= MAX_TURNS {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::default();
        turns.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use url::Url;

    use super::*;
    use crate::registry::origin::Origin;

    fn key(repository: usize) -> TokenKey {
        TokenKey {
            registry: Origin::of(&Url::parse("https://r.io").unwrap()).unwrap(),
            skip_verify: false,
            repository: repository.to_string(),
            credentials: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn challenges_are_forgotten() {
        let known = Challenges::default();
        known.insert(key(1), Challenge::Basic);
        known.insert(key(2), Challenge::Basic);
        known.forget(&key(2));
        assert_eq!([1, 2].map(|n| known.get(&key(n))), [Some(Challenge::Basic), None]);
        tokio::time::advance(KEEP).await;
        assert_eq!(known.get(&key(1)), None);
        for n in 0..MAX_CHALLENGES * 2 {
            known.insert(key(n), Challenge::Basic);
        }
        assert!(known.lock().len() <= MAX_CHALLENGES);
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let turns = Turns::default();
        let first = turns.take(&key(1)).await;
        assert!(turns.take(&key(1)).now_or_never().is_none());
        assert!(turns.take(&key(2)).now_or_never().is_some());
        drop(first);
        assert!(turns.take(&key(1)).now_or_never().is_some());
        for n in 0..MAX_TURNS * 2 {
            tokio::task::unconstrained(turns.take(&key(n))).await;
        }
        assert!(turns.0.lock().unwrap().len() <= MAX_TURNS);
    }
}
