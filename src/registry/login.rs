//! Answers a registry's challenges for one listing: which credentials, in which order, where they go, when to stop.

use http::{HeaderValue, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::{
    auth::{self, Challenge, Token, TokenCache, TokenKey},
    error::{Cap, Refusal, RegistryError},
    http::{Answer, Outgoing, Session},
    keyring::Credentials,
    origin::{self, Authority, Origin, host_text},
};

/// Bytes of a token service's answer.
const MAX_TOKEN_BODY: usize = 256 * 1024;

/// The state of one listing's login.
///
/// Credentials are tried in turn, each once; a token that worked before is renewed once when it is refused. Every step
/// costs a request of the page's budget, so a registry that refuses for ever is left soon.
pub(super) struct Login<'a> {
    tokens: &'a TokenCache,
    /// Where tokens may come from, beside what [`origin::check_realm`] knows.
    token_hosts: &'a [Authority],
    key: TokenKey,
    host: String,
    scope: String,
    /// Without credentials the one thing to try is an anonymous token.
    candidates: Vec<Option<Credentials>>,
    at: usize,
    challenge: Option<Challenge>,
    /// How the registry asked in an earlier listing that it answered for the candidate at `at`.
    known_challenge: Option<Challenge>,
    grant: Option<Grant>,
    sent: bool,
    /// The token service that refused the credentials tried last; none if the registry itself did.
    refused_by: Option<String>,
}

struct Grant {
    header: HeaderValue,
    expires: Option<Instant>,
    /// Worked before: in this listing or, by the cache, in an earlier one.
    proven: bool,
}

impl Grant {
    fn from_token(token: Token, proven: bool) -> Self {
        Self { header: token.header, expires: Some(token.expires), proven }
    }
}

impl<'a> Login<'a> {
    /// `key.credentials` is filled in per candidate.
    pub(super) fn new(
        tokens: &'a TokenCache,
        token_hosts: &'a [Authority],
        key: TokenKey,
        first: &Url,
        credentials: Vec<Credentials>,
    ) -> Self {
        let scope = format!("repository:{}:pull", key.repository);
        let mut candidates: Vec<_> = credentials.into_iter().map(Some).collect();
        if candidates.is_empty() {
            candidates.push(None);
        }
        let host = host_text(first);
        let mut login = Self {
            tokens,
            token_hosts,
            key,
            host,
            scope,
            candidates,
            at: 0,
            challenge: None,
            known_challenge: None,
            grant: None,
            sent: false,
            refused_by: None,
        };
        login.resume();
        login
    }

    /// A token from an earlier listing: this registry has asked for it, so it may be sent at once. Without one, the
    /// registry need not ask again.
    fn resume(&mut self) {
        let all = 0..self.candidates.len();
        let cached = all.clone().find_map(|at| Some((at, self.tokens.get(&self.key_of(at))?)));
        if let Some((at, token)) = cached {
            self.at = at;
            self.sent = self.candidates[at].is_some();
            self.grant = Some(Grant::from_token(token, true));
            return;
        }
        let mut known = all.filter_map(|at| Some((at, self.tokens.challenges.get(&self.key_of(at))?)));
        if let Some((at, challenge)) = known.next() {
            self.at = at;
            self.known_challenge = Some(challenge);
        }
    }

    fn key_of(&self, at: usize) -> TokenKey {
        let credentials = self.candidates.get(at).and_then(Option::as_ref).map(Credentials::fingerprint);
        TokenKey { credentials, ..self.key.clone() }
    }

    /// What to send with the next request to the registry; renews a token that has expired.
    pub(super) async fn header(&mut self, session: &mut Session<'_>) -> Result<Option<HeaderValue>, RegistryError> {
        // A token that is stale on arrival is used once all the same.
        let expired = |grant: &Grant| grant.proven && grant.expires.is_some_and(|expires| expires <= Instant::now());
        if self.grant.as_ref().is_some_and(expired) {
            self.grant = None;
            if self.challenge.is_some() {
                self.log_in(session, StatusCode::UNAUTHORIZED).await?;
            }
        }
        if let Some(challenge) = self.known_challenge.take() {
            self.log_in_again(session, challenge).await?;
        }
        Ok(self.grant.as_ref().map(|grant| grant.header.clone()))
    }

    /// Answers as the registry asked the last time. If that does not hold any more, it is asked as if for the first time.
    async fn log_in_again(&mut self, session: &mut Session<'_>, challenge: Challenge) -> Result<(), RegistryError> {
        let candidate = self.candidates.get(self.at).cloned().flatten();
        let grant = self.answer(session, &challenge, candidate.as_ref()).await;
        if !matches!(grant, Ok(Some(_))) {
            self.tokens.challenges.forget(&self.key_of(self.at));
            self.at = 0;
        }
        self.grant = grant?;
        self.challenge = self.grant.is_some().then_some(challenge);
        Ok(())
    }

    /// The last request was answered with tags.
    pub(super) fn accepted(&mut self) {
        let Some(grant) = &mut self.grant else {
            return;
        };
        if !grant.proven
            && let Some(challenge) = &self.challenge
        {
            grant.proven = true;
            self.tokens.challenges.insert(self.key_of(self.at), challenge.clone());
        }
    }

    /// The registry answered 401 or 403: get ready for the next try, or say why there is none.
    pub(super) async fn denied(&mut self, session: &mut Session<'_>, answer: &Answer) -> Result<(), RegistryError> {
        let host = host_text(&answer.url);
        if Origin::of(&answer.url).as_ref() != Some(&self.key.registry) {
            let cause = "a redirect leads there, and credentials do not follow redirects to other hosts".to_owned();
            return Err(RegistryError::Unauthorized { host, sent: false, cause });
        }
        if answer.status == StatusCode::UNAUTHORIZED {
            self.challenge = auth::challenge(&answer.headers);
        }
        self.refused_by = None;
        if let Some(grant) = self.grant.take() {
            let key = self.key_of(self.at);
            self.tokens.forget(&key, &grant.header);
            self.tokens.challenges.forget(&key);
            // Only a token can have expired: a password that is refused stays refused.
            let renewable = grant.proven && grant.expires.is_some() && answer.status == StatusCode::UNAUTHORIZED;
            if !renewable {
                self.at += 1;
            }
        } else if answer.status != StatusCode::UNAUTHORIZED {
            return Err(self.failure(answer.status));
        }
        self.log_in(session, answer.status).await
    }

    /// Tries what is left, in order. `status` is what the registry said last.
    async fn log_in(&mut self, session: &mut Session<'_>, status: StatusCode) -> Result<(), RegistryError> {
        let Some(challenge) = self.challenge.clone() else {
            return Err(self.failure(status));
        };
        while let Some(candidate) = self.candidates.get(self.at).cloned() {
            let grant = self.answer(session, &challenge, candidate.as_ref()).await?;
            if grant.is_some() {
                self.grant = grant;
                return Ok(());
            }
            self.at += 1;
        }
        Err(self.failure(status))
    }

    async fn answer(
        &mut self,
        session: &mut Session<'_>,
        challenge: &Challenge,
        candidate: Option<&Credentials>,
    ) -> Result<Option<Grant>, RegistryError> {
        match challenge {
            Challenge::Basic => Ok(self.basic(candidate)),
            Challenge::Bearer { realm, service } => self.token(session, realm, service.as_deref(), candidate).await,
        }
    }

    fn basic(&mut self, credentials: Option<&Credentials>) -> Option<Grant> {
        let (username, password) = credentials?.user_and_password()?;
        let header = auth::basic(username, password)?;
        self.sent = true;
        Some(Grant { header, expires: None, proven: false })
    }

    /// `None`: the token service refuses these credentials.
    async fn token(
        &mut self,
        session: &mut Session<'_>,
        realm: &Url,
        service: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<Option<Grant>, RegistryError> {
        session.begin_token();
        origin::check_realm(&self.key.registry, self.token_hosts, realm)
            .map_err(|why| RegistryError::Refused { host: self.host.clone(), why })?;
        let key = self.key_of(self.at);
        // Two listings at once fetch one token. What has been refused is not in the cache.
        let _turn = self.tokens.turns.take(&key).await;
        if let Some(token) = self.tokens.get(&key) {
            self.sent |= credentials.is_some();
            return Ok(Some(Grant::from_token(token, false)));
        }
        let identity_token = credentials.and_then(Credentials::identity_token);
        let form = identity_token.map(|token| auth::token_form(service, &self.scope, token));
        let mut authorization = None;
        let mut url = realm.clone();
        if form.is_none() {
            url = auth::token_url(realm, service, &self.scope);
            let pair = credentials.and_then(Credentials::user_and_password);
            authorization = pair.and_then(|(username, password)| auth::basic(username, password));
        }
        if let Some(token) = identity_token {
            session.learn_sent(token);
        }
        self.sent |= credentials.is_some();
        let asked_at = Instant::now();
        let request = Outgoing { form, ..Outgoing::get(&url, authorization.as_ref(), MAX_TOKEN_BODY, Cap::TokenBytes) };
        let answer = session.send(&request).await?;
        let host = host_text(&url);
        match answer.status.as_u16() {
            200 => {
                let token = auth::parse_token(&answer.body, &host, asked_at)?;
                self.tokens.insert(key, token.clone());
                Ok(Some(Grant::from_token(token, false)))
            }
            // 400 is how OAuth 2 says that a refresh token does not hold (RFC 6749, 5.2).
            400 if identity_token.is_none() => Err(RegistryError::Server { host, status: 400 }),
            400 | 401 | 403 => {
                self.refused_by = Some(host);
                Ok(None)
            }
            300..=399 => {
                let why = Refusal::Redirect("from its token realm".to_owned());
                Err(RegistryError::Refused { host, why })
            }
            status => Err(RegistryError::Server { host, status }),
        }
    }

    fn failure(&self, status: StatusCode) -> RegistryError {
        let known = self.candidates.iter().flatten().count();
        if let Some(by) = &self.refused_by {
            let whom = match (self.sent, known) {
                (true, 1) => "the credentials".to_owned(),
                (true, n) => format!("any of the {n} credentials that match"),
                (false, _) => "anybody without credentials".to_owned(),
            };
            let cause = format!("its token service {by} does not accept {whom}");
            return RegistryError::Unauthorized { host: self.host.clone(), sent: self.sent, cause };
        }
        let cause = match (self.sent, status, known) {
            (true, StatusCode::FORBIDDEN, _) => "the credentials may not read this repository (403)".to_owned(),
            (true, _, 1) => "it does not accept the credentials (401)".to_owned(),
            (true, _, n) => format!("it accepts none of the {n} credentials that match (401)"),
            (false, StatusCode::FORBIDDEN, _) => "it refuses the repository without asking who we are (403)".to_owned(),
            (false, _, 0) => "it asks for credentials and there are none for it".to_owned(),
            (false, ..) => {
                "it asks in a way that the credentials do not fit: neither Basic nor a token realm".to_owned()
            }
        };
        RegistryError::Unauthorized { host: self.host.clone(), sent: self.sent, cause }
    }
}
