//! Sends requests: where they may go, how often, how long, how much comes back, and what is tried again.

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use tokio::time::Instant;
use url::Url;

use super::{
    error::{Cap, Refusal, RegistryError, Step},
    origin::{self, Origin, host_text},
    transport::{Transport, transport_error},
};

/// Requests that one page may cost: tokens, redirects and retries included.
const MAX_REQUESTS_PER_PAGE: usize = 12;
/// Times that one request is sent when the answer is 429, 5xx or a broken connection.
const MAX_TRIES: u32 = 4;
const MAX_REDIRECTS: usize = 5;
/// Longest pause of a host that is honoured, and the longest that an error reports.
const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);
const MAX_REPORTED_PAUSE: Duration = Duration::from_secs(60 * 60);
/// An error's body is read so that the connection can be used again, and for its codes: in bytes, and for how long.
const MAX_ERROR_BODY: usize = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(1);

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
}

impl<'a> Outgoing<'a> {
    /// A GET of anything.
    pub(super) fn get(url: &'a Url, authorization: Option<&'a HeaderValue>, max_body: usize) -> Self {
        Self { url, head: false, accept: None, authorization, form: None, max_body }
    }
}

/// A complete answer; the body of another status than 200 is what could be read of it within bounds.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) url: Url,
    pub(super) body: Vec<u8>,
}

/// The requests of one listing: counted, and all before one deadline.
pub(super) struct Session<'a> {
    transport: &'a Transport,
    registry: Origin,
    skip_verify: bool,
    deadline: Instant,
    requests: usize,
    left_for_page: usize,
}

impl<'a> Session<'a> {
    /// `skip_verify` holds for requests to `registry` only.
    pub(super) fn new(transport: &'a Transport, registry: Origin, skip_verify: bool, deadline: Instant) -> Self {
        Self { transport, registry, skip_verify, deadline, requests: 0, left_for_page: MAX_REQUESTS_PER_PAGE }
    }

    /// HTTP requests sent so far.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    pub(super) fn begin_page(&mut self) {
        self.left_for_page = MAX_REQUESTS_PER_PAGE;
    }

    /// GET on the registry, following redirects. The authorization stays behind once a redirect leaves the origin.
    pub(super) async fn get(
        &mut self,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let max_body = self.transport.limits.max_page_bytes;
        self.follow(&Outgoing::get(url, authorization, max_body)).await
    }

    /// [`Session::get`] for any request but a form.
    pub(super) async fn follow(&mut self, request: &Outgoing<'_>) -> Result<Answer, RegistryError> {
        let &Outgoing { url, head, accept, mut authorization, max_body, .. } = request;
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(&Outgoing { url: &at, head, accept, authorization, form: None, max_body }).await?;
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
        let host = host_text(request.url);
        self.check_target(request.url, &host)?;
        let mut tries = 0;
        loop {
            let outcome = self.attempt(request, &host).await;
            tries += 1;
            let backoff = self.backoff(tries);
            let (error, pause) = match outcome {
                Ok(answer) if answer.status == StatusCode::TOO_MANY_REQUESTS => {
                    let asked = retry_after(&answer.headers);
                    let pause = asked.unwrap_or(backoff);
                    self.transport.limiter.pause(&budget_key(request.url), pause.min(MAX_PAUSE));
                    let retry_after = asked.map(|asked| asked.min(MAX_REPORTED_PAUSE));
                    (RegistryError::RateLimited { host: host.clone(), retry_after }, pause)
                }
                Ok(answer) if answer.status.is_server_error() => {
                    let pause = retry_after(&answer.headers).unwrap_or(backoff);
                    (RegistryError::Server { host: host.clone(), status: answer.status.as_u16() }, pause)
                }
                Err(error @ RegistryError::Unreachable { step: Step::Read, .. }) => (error, backoff),
                other => return other,
            };
            let fits = pause <= MAX_PAUSE && Instant::now() + pause < self.deadline;
            if tries >= MAX_TRIES || self.left_for_page == 0 || !fits {
                return Err(error);
            }
            tracing::debug!(host, %error, pause_ms = pause.as_millis(), "trying again");
            tokio::time::sleep(pause).await;
        }
    }

    fn check_target(&self, url: &Url, host: &str) -> Result<(), RegistryError> {
        let refused = |why| Err(RegistryError::Refused { host: host.to_owned(), why });
        if let Err(why) = origin::check_address(url) {
            return refused(why);
        }
        match Origin::of(url) {
            Some(origin) if origin.is_https() || origin == self.registry => Ok(()),
            _ => refused(Refusal::Address("it is not reached over https".to_owned())),
        }
    }

    async fn attempt(&mut self, request: &Outgoing<'_>, host: &str) -> Result<Answer, RegistryError> {
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
        let answer = tokio::time::timeout_at(self.deadline.min(started + limit), self.exchange(request, host)).await;
        let answer = answer.unwrap_or_else(|_| {
            let after = if self.deadline < started + limit { self.transport.limits.deadline } else { limit };
            Err(RegistryError::Timeout { host: host.to_owned(), after })
        });
        let status = answer.as_ref().map_or(0, |answer| answer.status.as_u16());
        self.transport.metrics.registry_request(host);
        if matches!(status, 0 | 429 | 500..) {
            self.transport.metrics.registry_error(host);
        }
        tracing::debug!(
            host,
            path = request.url.path(),
            status,
            ms = started.elapsed().as_millis(),
            "registry request"
        );
        answer
    }

    async fn exchange(&self, request: &Outgoing<'_>, host: &str) -> Result<Answer, RegistryError> {
        let skip_verify = self.skip_verify && Origin::of(request.url).as_ref() == Some(&self.registry);
        let client = self.transport.client(skip_verify)?;
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
        let body = if request.head {
            Vec::new()
        } else if status == StatusCode::OK {
            read_body(response, request.max_body, host).await?
        } else {
            let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, read_body(response, MAX_ERROR_BODY, host)).await;
            body.ok().and_then(Result::ok).unwrap_or_default()
        };
        Ok(Answer { status, headers, url, body })
    }

    /// Doubles with each try, with jitter so that Images of one registry do not come back together.
    fn backoff(&self, tries: u32) -> Duration {
        self.transport.tuning.first_backoff.mul_f64(f64::from(1 << tries.min(6)) * (0.5 + fastrand::f64() / 2.0) / 2.0)
    }
}

/// Streams the body, so that at most the cap and one chunk are in memory, whatever it decompresses to.
async fn read_body(mut response: reqwest::Response, max: usize, host: &str) -> Result<Vec<u8>, RegistryError> {
    let too_much = || RegistryError::TooMuch { host: host.to_owned(), cap: Cap::PageBytes(max) };
    let announced = response.content_length().unwrap_or(0);
    if announced > max as u64 {
        return Err(too_much());
    }
    let mut body = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(&error, host))? {
        if body.len() + chunk.len() > max {
            return Err(too_much());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
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

/// An HTTP date is an RFC 2822 date; a wrong day of the week does not make the moment unclear.
const HTTP_DATE: jiff::fmt::rfc2822::DateTimeParser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); a date that has passed is no wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX)).min(u64::from(u32::MAX))));
    }
    let at = HTTP_DATE.parse_timestamp(text).ok()?;
    let wait = at.as_second().saturating_sub(jiff::Timestamp::now().as_second());
    Some(Duration::from_secs(u64::try_from(wait).unwrap_or(0).min(u64::from(u32::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_values() {
        let check = |value: &str, expected: Option<u64>| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{value:?}");
        };
        check("0", Some(0));
        check(" 120 ", Some(120));
        check("99999999999999999999999", Some(u64::from(u32::MAX)));
        check("-1", None);
        check("1.5", None);
        check("soon", None);
        check("", None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(0));
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "Sun, 06 Nov 2094 08:49:37 GMT".parse().unwrap())]);
        assert!(retry_after(&headers).unwrap() > Duration::from_hours(24 * 365 * 60));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

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
