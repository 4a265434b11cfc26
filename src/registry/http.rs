//! Sends requests: where they may go, how often, how long, how much comes back, and what is tried again.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION},
};
use tokio::time::Instant;
use url::Url;

use super::{
    auth,
    error::{Cap, Refusal, RegistryError, Step},
    failure::Stage,
    keyring::Credentials,
    notice::retry_after,
    origin::{self, Origin, Reach, host_text},
    page::PageError,
    scrub::Scrubber,
    transport::{Route, Transport, transport_error},
};

/// Requests that one page may cost: tokens, redirects and retries included.
const MAX_REQUESTS_PER_PAGE: usize = 12;
/// Times that one request is sent when the answer is 429, 5xx or a broken connection.
const MAX_TRIES: u32 = 4;
const MAX_REDIRECTS: usize = 5;
/// Longest pause of a host that is honoured, and the longest that an error reports.
const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);
pub(super) const MAX_REPORTED_PAUSE: Duration = Duration::from_secs(60 * 60);
/// An error's body is read so that the connection can be used again, and for its codes: in bytes, and for how long.
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes a body as it arrives, so that nobody has to hold it.
pub(super) trait BodySink: Send {
    /// A body begins; what came before it was another attempt at the same.
    fn begin(&mut self);
    /// The next bytes. An error ends the request.
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), PageError>;
}

/// A body that is kept.
impl BodySink for Vec<u8> {
    fn begin(&mut self) {
        self.clear();
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// One request; a form makes it a POST.
pub(super) struct Outgoing<'a> {
    pub(super) url: &'a Url,
    /// HEAD instead of GET.
    pub(super) head: bool,
    pub(super) accept: Option<&'static str>,
    pub(super) authorization: Option<&'a HeaderValue>,
    pub(super) form: Option<String>,
    /// Bytes of the answer's body, after decompression.
    pub(super) max_body: usize,
    /// What to call that limit in an error.
    pub(super) cap: fn(usize) -> Cap,
}

impl<'a> Outgoing<'a> {
    /// A GET of anything.
    pub(super) fn get(
        url: &'a Url,
        authorization: Option<&'a HeaderValue>,
        max_body: usize,
        cap: fn(usize) -> Cap,
    ) -> Self {
        Self { url, head: false, accept: None, authorization, form: None, max_body, cap }
    }
}

/// A complete answer; the body of another status than 200 is what could be read of it within bounds, that of a 200 may
/// have gone to a [`BodySink`].
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) url: Url,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn with_body(self, body: Vec<u8>) -> Self {
        if self.status == StatusCode::OK { Self { body, ..self } } else { self }
    }
}

/// The requests of one listing: counted, and all before one deadline.
pub(super) struct Session<'a> {
    transport: &'a Transport,
    registry: Origin,
    /// The registry's address.
    home: Url,
    /// Whether the registry is in a private network; unknown until it matters.
    home_is_private: Option<bool>,
    skip_verify: bool,
    deadline: Instant,
    requests: usize,
    left_for_page: usize,
    page: usize,
    stage: Stage,
    scrubber: Scrubber,
}

impl<'a> Session<'a> {
    /// `home` is an address on `registry`; `skip_verify` holds for requests to that origin only.
    pub(super) fn new(
        transport: &'a Transport,
        registry: Origin,
        home: Url,
        skip_verify: bool,
        deadline: Instant,
    ) -> Self {
        Self {
            transport,
            registry,
            home,
            home_is_private: None,
            skip_verify,
            deadline,
            requests: 0,
            left_for_page: MAX_REQUESTS_PER_PAGE,
            page: 0,
            stage: Stage::Page(1),
            scrubber: Scrubber::default(),
        }
    }

    /// Keeps these out of what is shown from the start, not only once they are sent: a registry may know them from an
    /// earlier listing. More than a page has requests cannot have been tried.
    pub(super) fn learn(&mut self, credentials: &[Credentials]) {
        for found in credentials.iter().take(MAX_REQUESTS_PER_PAGE) {
            let pair = found.user_and_password();
            if let Some(header) = pair.and_then(|(user, password)| auth::basic(user, password)) {
                self.scrubber.learn_authorization(&header);
            }
            if let Some(token) = found.identity_token() {
                self.scrubber.learn(token);
            }
        }
    }

    /// Remembers a secret that goes out in a body; those in headers are seen by themselves.
    pub(super) fn learn_sent(&mut self, secret: &str) {
        self.scrubber.learn(secret);
    }

    /// Takes credentials out of what a registry may have put into an error, by repeating what it was sent.
    pub(super) fn scrub(&self, error: RegistryError) -> RegistryError {
        error.map_texts(|text| self.scrubber.text(text))
    }

    /// HTTP requests sent so far.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    pub(super) fn begin_page(&mut self) {
        self.left_for_page = MAX_REQUESTS_PER_PAGE;
        self.page += 1;
        self.stage = Stage::Page(self.page);
    }

    /// What is asked for now is a token, until the page is asked for again.
    pub(super) fn begin_token(&mut self) {
        self.stage = Stage::Token;
    }

    /// What this is at.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// GET on the registry, following redirects. The authorization stays behind once a redirect leaves the origin.
    /// The body of a 200 goes to `sink`.
    pub(super) async fn get_into(
        &mut self,
        url: &Url,
        authorization: Option<&HeaderValue>,
        sink: &mut dyn BodySink,
    ) -> Result<Answer, RegistryError> {
        let max_body = self.transport.limits.max_page_bytes;
        self.stage = Stage::Page(self.page);
        self.follow_into(&Outgoing::get(url, authorization, max_body, Cap::PageBytes), sink).await
    }

    /// [`Session::get_into`] for any request but a form, with the body in the answer.
    pub(super) async fn follow(&mut self, request: &Outgoing<'_>) -> Result<Answer, RegistryError> {
        let mut body = Vec::new();
        let answer = self.follow_into(request, &mut body).await?;
        Ok(answer.with_body(body))
    }

    async fn follow_into(&mut self, request: &Outgoing<'_>, sink: &mut dyn BodySink) -> Result<Answer, RegistryError> {
        let &Outgoing { url, head, accept, mut authorization, max_body, cap, .. } = request;
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let request = Outgoing { url: &at, head, accept, authorization, form: None, max_body, cap };
            let answer = self.send_into(&request, sink).await?;
            if !is_redirect(answer.status) {
                return Ok(answer);
            }
            let target = redirect_target(&answer)?;
            if Origin::of(&target) != Origin::of(&at) {
                authorization = None;
            }
            at = target;
        }
        let why = Refusal::Redirect(format!("more than {MAX_REDIRECTS} in a row"));
        Err(RegistryError::Refused { host: host_text(&at), why })
    }

    /// Sends, and sends again within bounds when the host is busy or the connection breaks. Follows no redirect.
    pub(super) async fn send(&mut self, request: &Outgoing<'_>) -> Result<Answer, RegistryError> {
        let mut body = Vec::new();
        let answer = self.send_into(request, &mut body).await?;
        Ok(answer.with_body(body))
    }

    async fn send_into(&mut self, request: &Outgoing<'_>, sink: &mut dyn BodySink) -> Result<Answer, RegistryError> {
        let host = host_text(request.url);
        let route = self.route(request.url, &host).await?;
        if let Some(authorization) = request.authorization {
            self.scrubber.learn_authorization(authorization);
        }
        let mut tries = 0;
        loop {
            let outcome = self.attempt(request, &host, route, sink).await;
            tries += 1;
            let backoff = self.backoff(tries);
            let (error, pause) = match outcome {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    let asked = retry_after(&answer.headers);
                    let pause = asked.unwrap_or_default().max(backoff);
                    self.transport.limiter.pause(&budget_key(request.url), pause.min(MAX_PAUSE));
                    let retry_after = asked.map(|asked| asked.min(MAX_REPORTED_PAUSE));
                    (RegistryError::RateLimited { host: host.clone(), retry_after }, pause)
                }
                Ok(answer) if answer.status.is_server_error() => {
                    let pause = retry_after(&answer.headers).unwrap_or_default().max(backoff);
                    (RegistryError::Server { host: host.clone(), status: answer.status.as_u16() }, pause)
                }
                Err(error @ RegistryError::Unreachable { step: Step::Read, .. }) => (error, backoff),
                other => return other,
            };
            let fits = pause <= MAX_PAUSE && Instant::now() + pause < self.deadline;
            if tries >= MAX_TRIES || self.left_for_page == 0 || !fits {
                return Err(error);
            }
            let error = self.scrub(error);
            tracing::debug!(host = self.scrubber.text(&host), %error, pause_ms = pause.as_millis(), "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether a request may go there, and over which connection.
    ///
    /// Behind a proxy the proxy resolves names, so that only addresses in literal form can be judged here.
    async fn route(&mut self, url: &Url, host: &str) -> Result<Route, RegistryError> {
        let refused = |why| RegistryError::Refused { host: host.to_owned(), why };
        origin::check_address(url).map_err(refused)?;
        let to = Origin::of(url);
        if to.as_ref() == Some(&self.registry) {
            return Ok(if self.skip_verify { Route::Unverified } else { Route::Verified });
        }
        let address = |why: &str| refused(Refusal::Address(format!("{host} {why}")));
        if !to.is_some_and(|to| to.is_https()) {
            return Err(address("is not reached over https"));
        }
        if self.scrubber.is_in(url) {
            return Err(address("comes with credentials in it"));
        }
        if self.home_is_private().await {
            return Ok(Route::Verified);
        }
        match origin::literal(url) {
            Some(ip) if origin::reach(ip) != Reach::Public => {
                Err(address("is a private address, and the registry's is not"))
            }
            _ if self.transport.is_proxied(url) => Ok(Route::Verified),
            _ => Ok(Route::PublicOnly),
        }
    }

    async fn home_is_private(&mut self) -> bool {
        if let Some(known) = self.home_is_private {
            return known;
        }
        let lookup = tokio::time::timeout_at(self.deadline, self.transport.is_private(&self.home));
        let found = !self.transport.is_proxied(&self.home) && lookup.await.unwrap_or(false);
        self.home_is_private = Some(found);
        found
    }

    async fn attempt(
        &mut self,
        request: &Outgoing<'_>,
        host: &str,
        route: Route,
        sink: &mut dyn BodySink,
    ) -> Result<Answer, RegistryError> {
        if self.left_for_page == 0 {
            let cap = Cap::Requests(MAX_REQUESTS_PER_PAGE);
            return Err(RegistryError::TooMuch { host: host.to_owned(), cap });
        }
        self.transport.limiter.turn(&budget_key(request.url), self.deadline).await.map_err(|no_turn| {
            let retry_after = Some(no_turn.wait.min(MAX_REPORTED_PAUSE));
            RegistryError::RateLimited { host: host.to_owned(), retry_after }
        })?;
        self.left_for_page -= 1;
        self.requests += 1;
        let started = Instant::now();
        let limit = self.transport.limits.page_timeout;
        let answer =
            tokio::time::timeout_at(self.deadline.min(started + limit), self.exchange(request, host, route, sink))
                .await;
        let answer = answer.unwrap_or_else(|_| {
            let after = if self.deadline < started + limit { self.transport.limits.deadline } else { limit };
            Err(RegistryError::Timeout { host: host.to_owned(), after })
        });
        let status = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        // Counted for the registry that an Image names: hosts that a registry names could be any number of any names.
        let home = host_text(&self.home);
        self.transport.metrics.registry_request(&home);
        if matches!(status, 0 | 429 | 500..) {
            self.transport.metrics.registry_error(&home);
        }
        if let Ok(answer) = &answer {
            self.transport.warnings.log(&home, &answer.headers, &self.scrubber);
        }
        // What a registry puts into an address it may have from anybody.
        let path = if request.url.path() == self.home.path() { self.home.path() } else { "(named by the registry)" };
        let host = self.scrubber.text(host);
        tracing::debug!(host, path, status, ms = started.elapsed().as_millis(), "registry request");
        answer
    }

    async fn exchange(
        &self,
        request: &Outgoing<'_>,
        host: &str,
        route: Route,
        sink: &mut dyn BodySink,
    ) -> Result<Answer, RegistryError> {
        let client =
            self.transport.client(route, request.url, Origin::of(request.url).as_ref() == Some(&self.registry))?;
        let mut builder = match &request.form {
            None if request.head => client.request(Method::HEAD, request.url.clone()),
            None => client.get(request.url.clone()),
            Some(form) => client
                .post(request.url.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.clone()),
        };
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if let Some(authorization) = request.authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        let response = builder.send().await.map_err(|error| transport_error(&error, host))?;
        let (status, headers, url) = (response.status(), response.headers().clone(), response.url().clone());
        let mut body = Vec::new();
        if request.head {
            // Nothing follows.
        } else if status == StatusCode::OK {
            read_body(response, (request.max_body, request.cap), host, sink).await?;
        } else {
            let reading = read_body(response, (MAX_ERROR_BODY, Cap::PageBytes), host, &mut body);
            if !matches!(tokio::time::timeout(ERROR_BODY_TIMEOUT, reading).await, Ok(Ok(()))) {
                body.clear();
            }
        }
        Ok(Answer { status, headers, url, body })
    }

    /// Doubles with each try, with jitter so that Images of one registry do not come back together.
    fn backoff(&self, tries: u32) -> Duration {
        self.transport.tuning.first_backoff.mul_f64(f64::from(1 << tries.min(6)) * (0.5 + fastrand::f64() / 2.0) / 2.0)
    }
}

/// Streams the body: one chunk is in memory, whatever it decompresses to.
async fn read_body(
    mut response: reqwest::Response,
    (max, cap): (usize, fn(usize) -> Cap),
    host: &str,
    sink: &mut dyn BodySink,
) -> Result<(), RegistryError> {
    let too_much = || RegistryError::TooMuch { host: host.to_owned(), cap: cap(max) };
    if response.content_length().unwrap_or(0) > max as u64 {
        return Err(too_much());
    }
    let mut read = 0;
    sink.begin();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(&error, host))? {
        read += chunk.len();
        if read > max {
            return Err(too_much());
        }
        sink.chunk(&chunk).map_err(|error| error.of(host.to_owned()))?;
    }
    Ok(())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Same origin, or any host over https.
fn redirect_target(answer: &Answer) -> Result<Url, RegistryError> {
    let host = host_text(&answer.url);
    let location = answer.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let Some(mut target) = location.and_then(|location| answer.url.join(location).ok()) else {
        return Err(RegistryError::Malformed { host, cause: "a redirect to no address".to_owned() });
    };
    target.set_fragment(None);
    let to = Origin::of(&target);
    if to != Origin::of(&answer.url) && !to.is_some_and(|to| to.is_https()) {
        let why = Refusal::Redirect(format!("to {} without https", host_text(&target)));
        return Err(RegistryError::Refused { host, why });
    }
    origin::check_address(&target).map_err(|why| RegistryError::Refused { host, why })?;
    Ok(target)
}

/// Rate and pauses hold for a host and port, whatever the scheme.
fn budget_key(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirect_targets() {
        let check = |from: &str, location: &str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let url = Url::parse(from).unwrap();
            let answer = Answer { status: StatusCode::FOUND, headers, url, body: Vec::new() };
            assert_eq!(redirect_target(&answer).ok().as_ref().map(Url::as_str), expected, "{from} -> {location}");
        };
        check("https://r.io/a", "/b", Some("https://r.io/b"));
        check("https://r.io/a", "https://cdn.io/b#x", Some("https://cdn.io/b"));
        check("https://r.io/a", "http://r.io/b", None);
        check("https://r.io/a", "http://cdn.io/b", None);
        check("https://r.io/a", "file:///etc/passwd", None);
        check("https://r.io/a", "https://u:p@r.io/b", None);
        check("https://r.io/a", "https://169.254.169.254/b", None);
        check("http://r.io:5000/a", "/b", Some("http://r.io:5000/b"));
        check("http://r.io:5000/a", "http://r.io:5001/b", None);
        check("http://r.io:5000/a", "https://r.io/b", Some("https://r.io/b"));
        check("https://r.io/a", "https://[", None);
    }
}
